"""Which pixels of a clean and a noisy image lie on one another: the shift rule of RawNIND's descriptors.

A shift is (dy, dx) in full-resolution pixels: pixel y + dy of the clean image shows what pixel y of the noisy one
shows. So above 0 the clean image loses its first lines and the noisy one its last; below 0 the other way round.

The noisy image is used as packed planes, so what is left of it must start at a red photosite and have even sides: where
the shift is odd, one more line of each goes. The clean image is used as RGB and may start anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Overlap:
    """What two images share, in full-resolution pixels.

    gt_top, gt_left  where it begins in the clean image: any parity
    f_top, f_left    where it begins in the noisy image: even for mosaics
    height, width    of both: even for mosaics
    """

    gt_top: int
    gt_left: int
    f_top: int
    f_left: int
    height: int
    width: int

    @property
    def gt(self) -> tuple[slice, slice]:
        """Rows and columns of the clean image."""
        return slice(self.gt_top, self.gt_top + self.height), slice(self.gt_left, self.gt_left + self.width)

    @property
    def f(self) -> tuple[slice, slice]:
        """Rows and columns of the noisy image."""
        return slice(self.f_top, self.f_top + self.height), slice(self.f_left, self.f_left + self.width)


def overlap(shift: tuple[int, int], gt_size: tuple[int, int], f_size: tuple[int, int], *, lattice: int = 2) -> Overlap:
    """The pixels that two images share under a shift.

    shift     (dy, dx), full-resolution pixels, any sign and parity
    gt_size   and `f_size`: (height, width), full-resolution pixels
    lattice   what the noisy image's origin and the overlap's sides are multiples of: 2 for RGGB mosaics, 1 for pictures
    raises    ValueError when nothing is left
    """
    (gt_top, f_top, height), (gt_left, f_left, width) = (
        _along(s, gt, f, lattice) for s, gt, f in zip(shift, gt_size, f_size, strict=True)
    )
    if height <= 0 or width <= 0:
        raise ValueError(f"a shift of {shift} leaves nothing of images of {gt_size} and {f_size} pixels in common")
    return Overlap(gt_top, gt_left, f_top, f_left, height, width)


def _along(shift: int, gt_length: int, f_length: int, lattice: int) -> tuple[int, int, int]:
    """(start in the clean image, start in the noisy one, length) along one axis."""
    f_start = -(min(shift, 0) // lattice * lattice)
    gt_start = f_start + shift
    return gt_start, f_start, min(gt_length - gt_start, f_length - f_start) // lattice * lattice
