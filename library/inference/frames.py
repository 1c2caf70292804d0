"""A raw as the three kinds of network see it: packed mosaic, CFA planes, or a picture in lin_rec2020.

A frame is mirrored at its edges to whole multiples of the lattice, so that no photosite is lost, and gives the input of
any window of it. It begins `offset` photosites above and left of the raw.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from library.errors import RawFileError
from library.files.markesteijn import demosaic
from library.files.noise_profile import NoiseProfiles
from library.files.raw import RawImage
from library.models.blocks.image_model import ImageModel
from library.ops.cfa import (
    BAYER_PHASES,
    cfa_tile,
    crop_to_rggb,
    mirror_pad,
    pack_cfa,
    pad_mosaic,
    rggb_offset,
    shift_cfa,
)
from library.ops.cfa_planes import CFA_PLANES, pack_cfa_planes
from library.ops.color import D65_WHITE_XYZ, apply_matrix, camera_rgb_to_lin_rec2020, camera_to_lin_rec2020_matrix
from library.ops.levels import normalize_levels
from library.ops.noise_estimate import estimate_noise
from library.ops.tiles import Tile

Noise = tuple[float, float] | NoiseProfiles
"""(a, b) of variance a * x + b, or the profiles of cameras to look for it in."""

_SMALLEST_MEASURED = 48
"""Photosites a side of a raw whose noise can be measured."""


class Frame(Protocol):
    """What an engine needs of a raw."""

    offset: tuple[int, int]
    """Photosites above and left of the raw's first one, that were mirrored onto it."""
    height: int
    """Model input pixels, a multiple of the lattice."""
    width: int

    def window(self, tile: Tile) -> Tensor:
        """(C, h, w) float32: the model's input for a tile's window."""
        ...

    def camera_rgb(self, output: Tensor) -> Tensor:
        """What the model gives, (3, h, w), as camera RGB."""
        ...


def frame_of(raw: RawImage, model: ImageModel, *, noise: Noise | None, sigma_factor: float) -> Frame:
    """A raw as a model takes it.

    noise         that a model of CFA planes is told of; None: as `noise_of` finds it
    sigma_factor  of that noise
    raises        RawFileError for a raw without colour matrix and a model of pictures, ValueError for an X-Trans raw
                  and a model of packed planes
    """
    if model.in_channels == 4:
        return PackedFrame(raw, model.lattice)
    if model.in_channels == CFA_PLANES:
        told = noise if isinstance(noise, tuple) else noise_of(raw, noise)
        return PlanesFrame(raw, model.lattice, told, sigma_factor)
    return PictureFrame(raw, model.lattice)


def noise_of(raw: RawImage, profiles: NoiseProfiles | None = None) -> tuple[float, float]:
    """(a, b) of a raw's noise, variance a * x + b: of its camera's profile at its ISO, else the mean over the file's
    own NoiseProfile, else what the picture shows.

    raises  RawFileError for a raw that is too small to show anything
    """
    if profiles is not None and raw.iso is not None and (camera := profiles.camera(raw.make, raw.model)) is not None:
        return camera.at(raw.iso)
    if raw.noise_profile:
        a, b = np.mean(np.array(raw.noise_profile), axis=0)
        if a > 0:
            return float(a), max(float(b), 0.0)
    if min(raw.mosaic.shape) < _SMALLEST_MEASURED:
        raise RawFileError(
            raw.path,
            f"says nothing of its noise and is too small ({raw.width} x {raw.height}) to measure it: give the noise "
            "(A B of variance A x + B)",
        )
    mosaic = _linear(raw, slice(None), slice(None))
    if raw.cfa in BAYER_PHASES:
        return estimate_noise(pack_cfa(crop_to_rggb(mosaic, raw.cfa)))
    # Of X-Trans the greens that stand in squares of four, where its 3x3 blocks meet: nowhere else are samples of one
    # colour so near that what differs is noise.
    green = cfa_tile(raw.cfa) == 1
    squares = green & green.roll(-1, 0) & green.roll(-1, 1) & green.roll((-1, -1), (0, 1))
    y, x = squares.nonzero()[0].tolist()
    rows, columns = ((torch.arange(side) - first) % 3 < 2 for side, first in zip(mosaic.shape, (y, x), strict=True))
    return estimate_noise(mosaic[rows][:, columns][None])


def frame_size(raw: RawImage, model: ImageModel) -> tuple[int, int]:
    """(height, width) of the frame that `frame_of` makes, in model input pixels; nothing is computed."""
    before = rggb_offset(raw.cfa) if model.in_channels == 4 and raw.cfa in BAYER_PHASES else (0, 0)
    side = model.lattice * (2 if model.in_channels == 4 else 1)
    height, width = (-(-(n + d) // side) * model.lattice for n, d in zip(raw.mosaic.shape, before, strict=True))
    return height, width


class PackedFrame:
    """From the first red site on; R, G1, G2, B. Only the lines of a window are ever copied."""

    def __init__(self, raw: RawImage, lattice: int) -> None:
        self._raw = raw
        self.offset = rggb_offset(raw.cfa)
        side = 2 * lattice
        lines = [
            mirror_pad(torch.arange(length), 0, before, (length + before) % 2)
            for length, before in zip(raw.mosaic.shape, self.offset, strict=True)
        ]
        self._rows, self._columns = (mirror_pad(line, 0, 0, -len(line) % side).numpy() for line in lines)
        self.height, self.width = len(self._rows) // 2, len(self._columns) // 2
        # Levels in the order of the padded mosaic's tile, which starts at R.
        self._black_level = torch.from_numpy(np.roll(raw.black_level, self.offset, (0, 1)).copy())

    def window(self, tile: Tile) -> Tensor:
        rows, columns = (
            lines[2 * span.start : 2 * span.stop]
            for lines, span in ((self._rows, tile.window_rows), (self._columns, tile.window_columns))
        )
        mosaic = self._raw.mosaic[:, columns.min() : columns.max() + 1].take(rows, 0)
        window = torch.from_numpy(mosaic.take(columns - columns.min(), 1))
        return pack_cfa(normalize_levels(window, self._black_level, float(self._raw.white_level)))

    def camera_rgb(self, output: Tensor) -> Tensor:
        return output


class PlanesFrame:
    """From the raw's own corner, whatever its phase; mosaic, red, green, blue, sigma."""

    offset: tuple[int, int] = (0, 0)

    def __init__(self, raw: RawImage, lattice: int, noise: tuple[float, float], sigma_factor: float) -> None:
        self._raw = raw
        self._noise, self._sigma_factor = noise, sigma_factor
        height, width = raw.mosaic.shape
        self.height, self.width = height + -height % lattice, width + -width % lattice
        # As line numbers: mirroring what is not there yet costs nothing.
        rows, columns = torch.arange(height)[:, None].expand(height, 6), torch.arange(width).expand(6, width)
        self._rows = pad_mosaic(rows, raw.cfa, bottom=self.height - height)[:, 0].numpy()
        self._columns = pad_mosaic(columns, raw.cfa, right=self.width - width)[0].numpy()

    def window(self, tile: Tile) -> Tensor:
        (top, bottom), (left, right) = tile.window_rows, tile.window_columns
        rows, columns = self._rows[top:bottom], self._columns[left:right]
        window = torch.from_numpy(self._raw.mosaic[rows[:, None], columns])
        black_level = torch.from_numpy(np.roll(self._raw.black_level, (-top, -left), (0, 1)).copy())
        linear = normalize_levels(window, black_level, float(self._raw.white_level))
        a, b = self._noise
        return pack_cfa_planes(linear, shift_cfa(self._raw.cfa, top, left), a=a, b=b, strength=self._sigma_factor)

    def camera_rgb(self, output: Tensor) -> Tensor:
        return output


class PictureFrame:
    """The raw demosaiced (Malvar, or Markesteijn for X-Trans), in lin_rec2020; all of it in memory."""

    offset: tuple[int, int] = (0, 0)

    def __init__(self, raw: RawImage, lattice: int) -> None:
        if raw.xyz_to_camera is None:
            raise RawFileError(
                raw.path,
                "its camera's colour matrix is unknown, and this bundle takes pictures in lin_rec2020: use a bundle of "
                "packed or CFA planes, or convert it to DNG with Adobe DNG Converter",
            )
        camera_rgb = demosaic(
            _linear(raw, slice(None), slice(None)), cfa=raw.cfa, as_shot_white_balance=raw.as_shot_white_balance
        )
        # At the scale of training, where a white of luminance 1 brings green to 1.
        matrix = raw.xyz_to_camera / float((raw.xyz_to_camera @ D65_WHITE_XYZ.numpy())[1])
        self._to_camera = torch.linalg.inv(camera_to_lin_rec2020_matrix(matrix))
        picture = camera_rgb_to_lin_rec2020(camera_rgb, xyz_to_camera=matrix)
        for dim in (1, 2):
            picture = mirror_pad(picture, dim, 0, -picture.shape[dim] % lattice)
        self._picture = picture
        self.height, self.width = picture.shape[1:]

    def window(self, tile: Tile) -> Tensor:
        return self._picture[:, slice(*tile.window_rows), slice(*tile.window_columns)]

    def camera_rgb(self, output: Tensor) -> Tensor:
        return apply_matrix(output, self._to_camera)


def _linear(raw: RawImage, rows: slice, columns: slice) -> Tensor:
    """(h, w) scene-linear from the raw's own corner."""
    mosaic = torch.from_numpy(np.ascontiguousarray(raw.mosaic[rows, columns]))
    return normalize_levels(mosaic, torch.from_numpy(np.ascontiguousarray(raw.black_level)), float(raw.white_level))
