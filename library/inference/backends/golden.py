"""Whatever computes a bundle must do what the bundle does, on its golden tiles, or it computes nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from library.bundle import Bundle, golden_inputs
from library.errors import BundleError, StillgrainError
from library.files.places import place
from library.inference.tiled import run_tiled
from library.ops.tiles import Tile
from library.sealed import read_files, read_tensors

_GOLDEN = "golden.safetensors"

Run = Callable[[np.ndarray], np.ndarray]
"""float32 (1, C, h, w) -> (1, 3, scale * h, scale * w), computed by what was exported."""

LARGEST_NOISE = 1.0
"""Lightness that half precision may add at random, rms over a tile; see `LightnessError`."""
LARGEST_SHIFT = 0.25
"""Lightness by which half precision may move a channel of a tile."""

_TILE = 256
"""Model input pixels a side, by which PyTorch computes what a larger graph is compared with."""
_MIDDLE_GREY = 0.184
"""Luminance of L* 50."""


@dataclass(frozen=True)
class LightnessError:
    """How far half precision is from float32, as somebody sees it who has exposed each tile for its own content.

    CIE lightness L* (CIE 15:2004, section 8.2.1), on which about 1 is a just noticeable step between large areas side
    by side, taken channel by channel, with the mean magnitude of a golden tile brought to middle grey: a tile six stops
    down is judged as a shadow that was pushed by six stops, where half precision has its largest relative errors. L* is
    continued by its own straight line below black.

    What varies from pixel to pixel is seen as grain, of which the eye averages much: it may reach that step. What moves
    a whole tile is a cast, or a step between exposures, and may reach a quarter of it.
    """

    noise: float
    """Largest root mean square over the pixels of a tile and channel."""
    shift: float
    """Largest mean over the pixels of a tile and channel, without sign."""

    @property
    def is_seen(self) -> bool:
        return not (self.noise <= LARGEST_NOISE and self.shift <= LARGEST_SHIFT)

    def __str__(self) -> str:
        return (
            f"{self.noise:.2g} of lightness L* at random ({LARGEST_NOISE:g} is allowed) and {self.shift:.2g} on the "
            f"mean of a tile ({LARGEST_SHIFT:g} is allowed); about 1 is just noticeable"
        )


def lightness_error(found: Tensor, wanted: Tensor) -> LightnessError:
    """Of (K, 3, H, W) outputs against those in float32, scene-linear at any gain."""
    noise, shift = [], []
    for found_tile, wanted_tile in zip(found, wanted, strict=True):
        exposure = _MIDDLE_GREY / wanted_tile.abs().mean().clamp_min(1e-12)
        for pair in zip(found_tile, wanted_tile, strict=True):  # of a large tile, doubles take memory
            after, before = (_lightness(channel.double() * exposure) for channel in pair)
            error = after - before
            noise.append(error.square().mean().sqrt())
            shift.append(error.mean().abs())
    return LightnessError(float(torch.stack(noise).max()), float(torch.stack(shift).max()))


def _lightness(luminance: Tensor) -> Tensor:
    """L* of luminance on a scale where white is 1."""
    bound, slope = (6 / 29) ** 3, (29 / 3) ** 3
    return torch.where(luminance > bound, 116 * luminance.clamp_min(bound).pow(1 / 3) - 16, slope * luminance)


@contextlib.contextmanager
def running(bundle: Bundle, what: str) -> Iterator[None]:
    """A block in which `what`, another's package, runs the network: its errors, which have no base of their own, become
    BundleErrors."""
    try:
        yield
    except (StillgrainError, OSError):
        raise
    except Exception as error:
        raise BundleError(bundle.path, f"is a network that {what} does not run: {error}") from None


def check_golden_tiles(bundle: Bundle, run: Run, what: str) -> float:
    """The largest difference from the bundle's golden tiles.

    what    names in an error what computed them
    raises  BundleError when it is more than the bundle allows
    """
    inputs, outputs = golden_tiles(bundle)
    return max(
        _difference(bundle, run, tile[None], wanted[None], f"{what} does not reproduce the bundle's golden tiles")
        for tile, wanted in zip(inputs, outputs, strict=True)
    )


def check_half_precision(bundle: Bundle, run: Run, what: str) -> LightnessError:
    """How far half precision is from the bundle's golden tiles.

    what    names in an error what computed them
    raises  BundleError when somebody would see it
    """
    inputs, wanted = golden_tiles(bundle)
    found = torch.cat([torch.from_numpy(run(np.ascontiguousarray(tile[None].numpy()))) for tile in inputs])
    return _seen(bundle, found, wanted, f"{what} does not reproduce the bundle's golden tiles")


def check_sides(bundle: Bundle, run: Run, height: int, width: int, what: str) -> float:
    """The largest difference from the network in PyTorch, on the golden tiles' inputs side by side, as often as they
    fill `height` x `width` pixels.

    raises  BundleError when it is more than the bundle allows
    """
    x, wanted = _sides(bundle, height, width)
    return _difference(bundle, run, x, wanted, f"{what} does not compute what the bundle does on {height} x {width}")


def check_sides_in_half_precision(bundle: Bundle, run: Run, height: int, width: int, what: str) -> LightnessError:
    """The same by what somebody would see."""
    x, wanted = _sides(bundle, height, width)
    found = torch.from_numpy(run(np.ascontiguousarray(x.numpy())))
    return _seen(bundle, found, wanted, f"{what} does not compute what the bundle does on {height} x {width}")


def golden_tiles(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """Inputs (K, C, s, s) and outputs (K, 3, scale * s, scale * s)."""
    golden = read_tensors(bundle.path, _GOLDEN, read_files(place(bundle.path)))
    return golden["input"], golden["output"]


def _sides(bundle: Bundle, height: int, width: int) -> tuple[Tensor, Tensor]:
    model = bundle.model
    tiles = golden_inputs(model.in_channels, model.lattice)
    block = torch.cat([torch.cat([tiles[0], tiles[1]], 2), torch.cat([tiles[2], tiles[3]], 2)], 1)
    rows, columns = (torch.arange(side) % block.shape[-1] for side in (height, width))
    x = block[None, :, rows[:, None], columns]
    wanted = torch.empty(1, 3, model.scale * height, model.scale * width)

    def window(tile: Tile) -> Tensor:
        return x[0, :, slice(*tile.window_rows), slice(*tile.window_columns)]

    # By small tiles, which are as exact: who checks a large graph has no memory to spare beside it.
    for top, left, pixels in run_tiled(model, height, width, window, tile=_TILE // model.lattice * model.lattice):
        wanted[0, :, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return x, wanted


def _seen(bundle: Bundle, found: Tensor, wanted: Tensor, fault: str) -> LightnessError:
    if found.shape != wanted.shape:
        raise BundleError(bundle.path, f"{fault}: it gives {tuple(found.shape)}, and {tuple(wanted.shape)} is wanted")
    error = lightness_error(found, wanted)
    if error.is_seen:
        raise BundleError(bundle.path, f"{fault}: it differs by {error}. Use fp32")
    return error


def _difference(bundle: Bundle, run: Run, x: Tensor, wanted: Tensor, fault: str) -> float:
    found = run(np.ascontiguousarray(x.numpy()))
    if found.shape != wanted.shape:
        raise BundleError(bundle.path, f"{fault}: it gives {found.shape}, and {tuple(wanted.shape)} is wanted")
    difference = float(np.abs(found - wanted.numpy()).max())
    tolerance = bundle.manifest["golden_tolerance"]
    if not difference <= tolerance:
        raise BundleError(
            bundle.path,
            f"{fault}: they differ by {difference:.3g} of white, and {tolerance:g} is allowed. "
            "Use the package versions of constraints.txt, or PyTorch",
        )
    return difference
