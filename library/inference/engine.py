"""A denoiser applied to a whole image through exact tiles; what it needs of memory depends on the tile, not on the
image, unless the bundle's output has an arbitrary gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from library.bundle import Bundle
from library.errors import BundleError, ConfigError, RawFileError
from library.files.raw import RawImage
from library.models.blocks.image_model import ImageModel
from library.ops.cfa import mirror_pad, pack_cfa, pad_to_rggb, rggb_offset, sample_cfa
from library.ops.levels import normalize_levels
from library.ops.tiles import Tile, plan_tiles

Precision = Literal["fp32", "bf16"]
ENGINE_VERSION = "1"
"""Changes whenever the same raw and bundle would give other samples."""
DEFAULT_TILE = 512
"""Model input pixels a side: 1024 photosites, about half a gigabyte of activations for a 32-channel network."""

SMALLEST_TILE = 96
"""Model input pixels a side. PyTorch computes a convolution of up to 20,480 input samples with another kernel, which
rounds differently (`ConvParams::use_mkldnn`). Windows of this size stay above that at every layer of networks from 8
channels up; images of a few dozen rows, and narrower networks, may still differ in the last bit."""


class Patch(NamedTuple):
    """A rectangle of a picture."""

    top: int
    left: int
    pixels: Tensor
    """(3, height, width) float32"""


class Engine:
    """Runs one bundle. In float32 the tile size changes no bit of the result, as `verify_tiling` can prove.

    A bundle of arbitrary output gain gets its brightness from the raw, by one factor for the whole image (a factor for
    each tile would show as seams); until that is known the picture is held in memory, 12 bytes a pixel.

    bundle     of a raw denoiser (packed mosaics in, camera RGB out)
    tile       model input pixels a side, at least `SMALLEST_TILE`; rounded down to the lattice
    precision  of the network; bf16 is about twice as fast where the processor has it, and no longer exact
    device     such as "cpu" or "cuda"
    raises     BundleError when the bundle takes something else; ConfigError when the tile is smaller than
               `SMALLEST_TILE`
    """

    def __init__(
        self, bundle: Bundle, *, tile: int = DEFAULT_TILE, precision: Precision = "fp32", device: str = "cpu"
    ) -> None:
        self.bundle = bundle
        self.model = bundle.model.to(torch.device(device))
        self.precision: Precision = precision
        self.tile = tile // self.model.lattice * self.model.lattice
        if self.model.in_channels != 4:
            raise BundleError(
                bundle.path,
                f"takes {self.model.in_channels} channels, and raws give 4 packed planes; use a raw denoiser's bundle",
            )
        if tile < SMALLEST_TILE:
            raise ConfigError(f"tile is {tile}, but must be at least {SMALLEST_TILE}, or rounding would depend on it")

    def camera_rgb(self, raw: RawImage) -> Iterator[Patch]:
        """The denoised and demosaiced picture, patch by patch.

        yields  patches in the raw's own pixels, each pixel once, row by row: camera RGB, black at 0 and white at 1, no
                white balance, below 0 and above 1 legal
        raises  RawFileError when the bundle's gain is arbitrary and the raw has nothing to take its brightness from
        """
        patches = self._network_output(raw)
        if self.bundle.gain == "absolute":
            return patches
        # Copies: a patch is a view of its window, halo and all.
        return _at_gain_of(raw, [patch._replace(pixels=patch.pixels.clone()) for patch in patches])

    def _network_output(self, raw: RawImage) -> Iterator[Patch]:
        """The same at the bundle's own gain."""
        mosaic = pad_to_rggb(torch.from_numpy(raw.mosaic), raw.cfa)
        side = 2 * self.model.lattice
        height, width = mosaic.shape
        mosaic = mirror_pad(mirror_pad(mosaic, 0, 0, -height % side), 1, 0, -width % side)
        offset = rggb_offset(raw.cfa)
        # Levels in the order of the padded mosaic's tile, which starts at R.
        black_level = torch.from_numpy(np.roll(raw.black_level, offset, (0, 1)))

        def packed(tile: Tile) -> Tensor:
            window = mosaic[
                2 * tile.window_rows.start : 2 * tile.window_rows.stop,
                2 * tile.window_columns.start : 2 * tile.window_columns.stop,
            ]
            return pack_cfa(normalize_levels(window, black_level, float(raw.white_level)))

        for patch in run_tiled(
            self.model, mosaic.shape[0] // 2, mosaic.shape[1] // 2, packed, tile=self.tile, precision=self.precision
        ):
            if (cut := _within(patch, offset, raw.height, raw.width)) is not None:
                yield cut


def run_tiled(
    model: ImageModel,
    height: int,
    width: int,
    window: Callable[[Tile], Tensor],
    *,
    tile: int,
    precision: Precision = "fp32",
) -> Iterator[Patch]:
    """Run a model over an image of `height` x `width` input pixels, one tile at a time.

    window  gives the (C, h, w) input of a tile's window
    yields  patches in output pixels, on the CPU
    """
    device = model.device
    scale = model.scale
    for t in plan_tiles(height, width, tile=tile, halo=model.halo, lattice=model.lattice):
        x = window(t)[None].to(device).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            y = model(x)[0].float()
        top, left = t.rows.start - t.window_rows.start, t.columns.start - t.window_columns.start
        bottom, right = top + t.rows.stop - t.rows.start, left + t.columns.stop - t.columns.start
        core = y[:, scale * top : scale * bottom, scale * left : scale * right]
        yield Patch(scale * t.rows.start, scale * t.columns.start, core.cpu())


def _within(patch: Patch, offset: tuple[int, int], height: int, width: int) -> Patch | None:
    """The part of a patch of the padded picture that lies in the raw's own `height` x `width`, None if nothing does."""
    (top, left), (dy, dx) = (patch.top, patch.left), offset
    rows = slice(max(dy - top, 0), max(dy + height - top, 0))
    columns = slice(max(dx - left, 0), max(dx + width - left, 0))
    pixels = patch.pixels[:, rows, columns]
    return Patch(max(top - dy, 0), max(left - dx, 0), pixels) if pixels.numel() else None


def _at_gain_of(raw: RawImage, patches: list[Patch]) -> Iterator[Patch]:
    """The patches of a whole picture, all scaled by one factor, which brings the picture, sampled by the raw's CFA, to
    the mean of the raw's mosaic over photosites that did not clip.

    Mosaic against mosaic: a picture's mean weighs green once, a mosaic's twice.
    """
    sampled = np.empty(raw.mosaic.shape, np.float32)
    for top, left, pixels in patches:
        rows, columns = pixels.shape[1:]
        phase = np.roll(np.array(list(raw.cfa)).reshape(2, 2), (-top, -left), (0, 1))
        sampled[top : top + rows, left : left + columns] = sample_cfa(pixels, "".join(phase.flat)).numpy()
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    unclipped = raw.mosaic < _clipping_level(raw)
    # The whole mosaic at once, not patch by patch: the order of summation is the image's, so tiles change no bit.
    wanted, mean = (
        float(x[unclipped].mean(dtype=np.float64)) if unclipped.any() else 0.0 for x in (mosaic.numpy(), sampled)
    )
    if not (wanted > 0 and mean > 0):
        raise RawFileError(
            raw.path,
            f"has no brightness that this bundle's output could take: over photosites below white its mean is "
            f"{wanted:.3g} and that of the output {mean:.3g}, but both must be above 0; use a bundle of absolute gain",
        )
    for patch in patches:
        yield patch._replace(pixels=patch.pixels * (wanted / mean))


def _clipping_level(raw: RawImage) -> np.ndarray:
    """(H, W) DN at which each photosite saturates: the lower of the decoder's level and the camera's own."""
    level = np.full((2, 2), float(raw.white_level))
    if raw.camera_white_level is not None:
        level = np.minimum(level, raw.camera_white_level)
    height, width = raw.mosaic.shape
    return np.tile(level, (-(-height // 2), -(-width // 2)))[:height, :width]
