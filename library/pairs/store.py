"""A prepared tree of pairs, memory-mapped: reading a crop touches only the crop and a halo around it.

The truth is stored demosaiced, or demosaiced as it is read, from the clean mosaic with a halo: as the tree was prepared
(see `library.pairs.prepare` for what either costs). A crop has the values that the whole image has there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from library.errors import ConfigError, DataError
from library.files.places import is_local, local_copy, place
from library.ops.cfa import pack_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.directional import demosaic_ahd, demosaic_menon
from library.ops.levels import normalize_levels
from library.pairs.index import INDEX, Pair, index_digest, read_index
from library.pairs.masks import unpack_mask

Demosaic = Callable[[Tensor], Tensor]
DEMOSAICS: dict[str, Demosaic] = {
    "bilinear": demosaic_bilinear,
    "malvar": demosaic_malvar,
    "ahd": demosaic_ahd,
    "menon": demosaic_menon,
}
"""Methods by name; each looks no farther than `HALO` photosites."""
HALO = 16
"""Photosites around a crop that are demosaiced with it."""
_OPEN_ARRAYS = 8192
"""Arrays that stay mapped; the system allows a process 65,530 maps."""


@dataclass(frozen=True, eq=False)
class PairCrop:
    """One crop of a pair; float32, scene-linear, black at 0 and white at 1, unclipped, no gain applied.

    noisy   (4, h / 2, w / 2) packed R, G1, G2, B; of an X-Trans pair (3, h, w), a picture in linear light
    target  (3, h, w) camera RGB of the clean image; of an X-Trans pair in the space of its pictures
    mask    (1, h, w), 1 where a pixel counts, 0 where not
    """

    noisy: Tensor
    target: Tensor
    mask: Tensor


class PairStore:
    """The pairs of one prepared folder; opened once per process. Coordinates are full-resolution pixels, counted from
    the corner of what both images of a pair share (`Pair.overlap`), and even."""

    def __init__(self, folder: str | Path | UPath, *, demosaic: str = "menon") -> None:
        """
        folder    one in an object store is copied to this machine first
        demosaic  one of `DEMOSAICS`, for targets that are not stored and for `noisy_rgb`
        raises    DataError when the folder holds no index of this format; ConfigError for an unknown method
        """
        self._source = place(folder)
        self.folder = local_copy(self._source, last=INDEX, replaced=True)  # a tree is prepared again in its place
        self.pairs: list[Pair] = [row for row in read_index(self.folder) if isinstance(row, Pair)]
        self.images: list[int] = [i for i, pair in enumerate(self.pairs) if pair.is_one_image]
        self.digest: str = index_digest(self.pairs)
        self.demosaic = demosaic
        self._demosaic = demosaic_named(demosaic)
        self._array = functools.lru_cache(maxsize=_OPEN_ARRAYS)(self._open)

    def __len__(self) -> int:
        return len(self.pairs)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of what both images of a pair share."""
        shared = self.pairs[index].overlap
        return shared.height, shared.width

    def crop(self, index: int, top: int, left: int, height: int, width: int) -> PairCrop:
        """A crop of a pair, inside `size`, at even coordinates and of even sides.

        raises  DataError for a file that is missing or damaged
        """
        pair, shared = self.pairs[index], self.pairs[index].overlap
        self._check(index, top, left, height, width)
        f_top, f_left = shared.f_top + top, shared.f_left + left
        if pair.f_mosaic is None:
            noisy = self._picture(pair.f_sha256, pair.scene, f_top, f_left, height, width)
        else:
            # Even coordinates, so the crop starts at a red photosite.
            assert pair.f_black_level is not None
            assert pair.f_white_level is not None
            counts = self._array(pair.f_mosaic)[f_top : f_top + height, f_left : f_left + width]
            noisy = pack_cfa(normalized_mosaic(counts, pair.f_black_level, pair.f_white_level))
        return PairCrop(noisy, self._target(pair, top, left, height, width), self.mask(index, top, left, height, width))

    def mask(self, index: int, top: int, left: int, height: int, width: int) -> Tensor:
        """(1, height, width) float32 of a crop as in `crop`: 1 where a pixel counts. Touches nothing but the mask, so
        that a crop can be refused before it is read."""
        packed = self._array(self.pairs[index].mask)
        return torch.from_numpy(unpack_mask(packed, top, left, height, width).astype(np.float32))[None]

    def counts(self, index: int) -> np.ndarray:
        """(height, width) uint16 DN of the whole noisy image of a Bayer pair, as recorded, from a red photosite on."""
        pair = self.pairs[index]
        assert pair.f_mosaic is not None, "an X-Trans pair's noisy image is a picture"
        return np.ascontiguousarray(self._array(pair.f_mosaic)[pair.overlap.f])

    def noisy_rgb(self, index: int, top: int, left: int, height: int, width: int) -> Tensor:
        """(3, height, width) camera RGB of the noisy image, demosaiced, for a crop as in `crop`."""
        pair, shared = self.pairs[index], self.pairs[index].overlap
        self._check(index, top, left, height, width)
        where = (shared.f_top + top, shared.f_left + left, height, width)
        if pair.f_mosaic is None:
            return self._picture(pair.f_sha256, pair.scene, *where)
        return self._rgb(pair.f_mosaic, pair.f_black_level, pair.f_white_level, pair.white_balance, *where)

    def clean_size(self, number: int) -> tuple[int, int]:
        """(height, width) of clean image `number` of `images`."""
        return self.size(self.images[number])

    def clean(self, number: int, top: int, left: int, height: int, width: int) -> PairCrop:
        """A crop of clean image `number` of `images` alone: its own mosaic as the input, and itself as the truth."""
        return self.crop(self.images[number], top, left, height, width)

    def _check(self, index: int, top: int, left: int, height: int, width: int) -> None:
        whole = self.size(index)
        inside = top >= 0 and left >= 0 and top + height <= whole[0] and left + width <= whole[1]
        assert inside, f"crop {(top, left, height, width)} leaves the {whole} pixels of pair {index}"
        assert not any(n % 2 for n in (top, left, height, width)), f"crop {(top, left, height, width)} is not even"

    def _target(self, pair: Pair, top: int, left: int, height: int, width: int) -> Tensor:
        top, left = pair.overlap.gt_top + top, pair.overlap.gt_left + left
        if pair.target is not None:
            rgb = self._array(pair.target)[top : top + height, left : left + width]
            return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32))
        assert pair.gt_mosaic is not None
        return self._rgb(
            pair.gt_mosaic, pair.black_level, pair.white_level, pair.white_balance, top, left, height, width
        )

    def _rgb(
        self,
        file: str,
        black_level: tuple[float, ...] | None,
        white_level: int | None,
        white_balance: tuple[float, ...],
        top: int,
        left: int,
        height: int,
        width: int,
    ) -> Tensor:
        assert black_level is not None
        assert white_level is not None
        levels = (black_level, white_level, white_balance)
        return demosaic_part(self._array(file), *levels, self._demosaic, top, left, height, width)

    def _picture(self, sha256: str, scene: str, top: int, left: int, height: int, width: int) -> Tensor:
        rgb = self._array(picture_file(scene, sha256))[top : top + height, left : left + width]
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32))

    def _open(self, file: str) -> np.ndarray:
        try:
            return np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            again = "" if is_local(self._source) else f"; then delete {self.folder}, its copy here"
            raise DataError(
                f"{self._source / file}: belongs to a prepared pair and cannot be read ({error}): delete it if it is "
                f"there, and prepare the tree again, which makes what is missing{again}"
            ) from None

    def __reduce__(self) -> tuple[functools.partial[PairStore], tuple[UPath]]:
        # Maps do not travel to other processes; they open the folder again.
        return functools.partial(PairStore, demosaic=self.demosaic), (self._source,)


def mosaic_file(scene: str, sha256: str) -> str:
    """Where a raw's mosaic lies in a prepared folder: uint16 (H, W) DN, RGGB, even sides."""
    return f"arrays/{scene}/{sha256[:16]}.mosaic.npy"


def target_file(scene: str, sha256: str, demosaic: str) -> str:
    """Where a clean raw's camera RGB lies in a prepared folder: float16 (H, W, 3)."""
    return f"arrays/{scene}/{sha256[:16]}.{demosaic}.target.npy"


def picture_file(scene: str, sha256: str) -> str:
    """Where a picture lies in a prepared folder, clean or noisy: float16 (H, W, 3), in linear light."""
    return f"arrays/{scene}/{sha256[:16]}.picture.npy"


def mask_file(scene: str, gt_sha256: str, f_sha256: str) -> str:
    """Where a pair's mask lies in a prepared folder: packed bits (H', W' / 8) of the shifted clean image's pixels."""
    return f"arrays/{scene}/{gt_sha256[:16]}-{f_sha256[:16]}.mask.npy"


def demosaic_named(name: str) -> Demosaic:
    """A method of demosaicing by name: (..., H, W) RGGB -> (..., 3, H, W).

    raises  ConfigError listing the names there are
    """
    if name not in DEMOSAICS:
        raise ConfigError(f"demosaic: unknown method '{name}'; known: {', '.join(DEMOSAICS)}")
    return DEMOSAICS[name]


def demosaic_part(
    counts: np.ndarray,
    black_level: tuple[float, ...],
    white_level: float,
    white_balance: tuple[float, ...],
    demosaic: Demosaic,
    top: int,
    left: int,
    height: int,
    width: int,
) -> Tensor:
    """A part of what the whole mosaic demosaiced would be, from the part and `HALO` photosites around it.

    counts     (H, W) DN, RGGB; the part lies inside, at any parity
    returns    (3, height, width) camera RGB, scene-linear
    """
    # From an even line on, so that the halo starts at a red photosite; at the image's own edge it ends.
    y, x = max(0, top // 2 * 2 - HALO), max(0, left // 2 * 2 - HALO)
    # To an even line too: methods mirror an odd side otherwise than an even one.
    bottom, right = (-(-end // 2) * 2 + HALO for end in (top + height, left + width))
    mosaic = normalized_mosaic(counts[y:bottom, x:right], black_level, white_level)
    rgb = balanced_demosaic(mosaic, white_balance, demosaic)
    return rgb[:, top - y : top - y + height, left - x : left - x + width].contiguous()


def balanced_demosaic(mosaic: Tensor, white_balance: tuple[float, ...], demosaic: Demosaic) -> Tensor:
    """Demosaiced under the light it was taken in, and given back without: methods that look for edges expect colours
    that change together.

    mosaic         (H, W) RGGB, scene-linear
    white_balance  (3,) gains of R, G, B
    returns        (3, H, W) camera RGB
    """
    red, green, blue = white_balance
    tile = torch.tensor([[red, green], [green, blue]], dtype=torch.float32)
    height, width = mosaic.shape
    rgb = demosaic(mosaic * tile.repeat(-(-height // 2), -(-width // 2))[:height, :width])
    return rgb / torch.tensor(white_balance, dtype=torch.float32)[:, None, None]


def normalized_mosaic(counts: np.ndarray, black_level: tuple[float, ...], white_level: float) -> Tensor:
    """(H, W) DN from a red photosite on to scene-linear float32, black at 0 and white at 1, unclipped."""
    black = torch.tensor(black_level, dtype=torch.float32).reshape(2, 2)
    return normalize_levels(torch.from_numpy(counts.astype(np.float32)), black, float(white_level))
