"""Whatever a bundle is exported to must do what the bundle does, on its golden tiles, or it is not written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from upath import UPath

from library.bundle import Bundle, golden_inputs
from library.errors import BundleError, StillgrainError
from library.files.places import place
from library.sealed import read_files, read_tensors

_GOLDEN = "golden.safetensors"

Run = Callable[[np.ndarray], np.ndarray]
"""float32 (1, C, h, w) -> (1, 3, scale * h, scale * w), computed by what was exported."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the bundle."""

    path: UPath
    what: str
    largest_difference: float
    """On the golden tiles, scene-linear."""
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.what}; golden tiles reproduced within {self.largest_difference:.2g} of white "
            f"({self.tolerance:g} is allowed)"
        )


@contextlib.contextmanager
def running(bundle: Bundle, what: str) -> Iterator[None]:
    """A block in which `what`, another's package, runs the network: its errors, which have no base of their own, become
    BundleErrors."""
    try:
        yield
    except (StillgrainError, OSError):
        raise
    except Exception as error:
        raise BundleError(bundle.path, f"cannot be exported: {what} does not run its network: {error}") from None


def check_golden_tiles(bundle: Bundle, run: Run, what: str) -> float:
    """The largest difference from the bundle's golden tiles.

    what    names in an error what computed them
    raises  BundleError when it is more than the bundle allows
    """
    golden = read_tensors(bundle.path, _GOLDEN, read_files(place(bundle.path)))
    return max(
        _difference(bundle, run, tile[None], wanted[None], f"{what} does not reproduce the bundle's golden tiles")
        for tile, wanted in zip(golden["input"], golden["output"], strict=True)
    )


def check_sides(bundle: Bundle, run: Run, height: int, width: int, what: str) -> float:
    """The largest difference from the network in PyTorch, on the golden tiles' inputs side by side, as often as they
    fill `height` x `width` pixels.

    raises  BundleError when it is more than the bundle allows
    """
    model = bundle.model
    tiles = golden_inputs(model.in_channels, model.lattice)
    block = torch.cat([torch.cat([tiles[0], tiles[1]], 2), torch.cat([tiles[2], tiles[3]], 2)], 1)
    rows, columns = (torch.arange(side) % block.shape[-1] for side in (height, width))
    x = block[None, :, rows[:, None], columns]
    with torch.no_grad():
        wanted = model(x.contiguous(memory_format=torch.channels_last))
    return _difference(bundle, run, x, wanted, f"{what} does not compute what the bundle does on {height} x {width}")


def _difference(bundle: Bundle, run: Run, x: torch.Tensor, wanted: torch.Tensor, fault: str) -> float:
    found = run(np.ascontiguousarray(x.numpy()))
    if found.shape != wanted.shape:
        raise BundleError(bundle.path, f"{fault}: it gives {found.shape}, and {tuple(wanted.shape)} is wanted")
    difference = float(np.abs(found - wanted.numpy()).max())
    tolerance = bundle.manifest["golden_tolerance"]
    if not difference <= tolerance:
        raise BundleError(
            bundle.path,
            f"{fault}: they differ by {difference:.3g} of white, and {tolerance:g} is allowed; nothing was written. "
            "Use the package versions of constraints.txt",
        )
    return difference
