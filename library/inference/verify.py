"""Does a tiled result equal the whole image, on this machine, with this bundle? Ask it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from library.bundle import Bundle, golden_inputs
from library.inference.backends.base import BackendName, Precision, is_exact
from library.inference.backends.opening import open_backend
from library.inference.engine import SMALLEST_TILE
from library.inference.tiled import run_tiled
from library.ops.tiles import Tile


@dataclass(frozen=True)
class TileCheck:
    """One tile size against the whole image."""

    tile: int
    num_tiles: int
    largest_difference: float
    """Scene-linear; 0 means that every bit is the same."""
    num_different: int
    """Samples of the result that differ."""


@dataclass(frozen=True)
class TilingReport:
    """What `verify_tiling` found."""

    backend: BackendName
    precision: Precision
    height: int
    """Model input pixels of the test image."""
    width: int
    reach: int
    halo: int
    lattice: int
    checks: tuple[TileCheck, ...]

    @property
    def promised(self) -> bool:
        """Whether tiles are to be exact with such a backend; with others the report is for information."""
        return is_exact(self.backend, self.precision)

    @property
    def exact(self) -> bool:
        """Whether every tile size gave the whole image bit for bit."""
        return all(check.num_different == 0 for check in self.checks)

    def __str__(self) -> str:
        lines = [
            f"geometry: reach {self.reach}, halo {self.halo}, lattice {self.lattice} (model input pixels)",
            f"image: {self.height} x {self.width}, {self.backend} in {self.precision}, whole against tiles",
        ]
        for check in self.checks:
            verdict = (
                "equal bit for bit"
                if check.num_different == 0
                else f"{check.num_different} samples differ, by at most {check.largest_difference:.3g} of white"
            )
            lines.append(f"  tile {check.tile:>4}, {check.num_tiles:>3} tiles: {verdict}")
        return "\n".join(lines)


def verify_tiling(
    bundle: Bundle, *, precision: Precision = "fp32", device: str = "cpu", backend: BackendName = "torch"
) -> TilingReport:
    """Compare tiled inference with one pass over the whole image, for several tile sizes that cut it differently.

    The image is noisy and structured, a few tiles a side with a remainder, so that tiles of several shapes meet
    corners, edges and interior.

    raises  as `open_backend` does
    """
    run = open_backend(bundle, backend, precision, device=device).backend.run
    model = bundle.model
    lattice, halo = model.lattice, model.halo
    unit = SMALLEST_TILE // lattice * lattice + lattice
    height, width = 3 * unit + 2 * halo + lattice, 4 * unit + 2 * halo + 3 * lattice
    image = _mosaic_of(golden_inputs(model.in_channels, lattice), height, width)

    def window(tile: Tile) -> torch.Tensor:
        return image[:, slice(*tile.window_rows), slice(*tile.window_columns)]

    def result(tile: int) -> tuple[int, torch.Tensor]:
        picture = torch.empty(3, model.scale * height, model.scale * width)
        count = 0
        for patch in run_tiled(model, height, width, window, tile=tile, run=run):
            rows, columns = patch.pixels.shape[1:]
            picture[:, patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.pixels
            count += 1
        return count, picture

    whole = result(max(height, width) // lattice * lattice + lattice)[1]
    checks = []
    for tile in (unit, unit + 3 * lattice, 2 * unit + lattice):
        count, tiled = result(tile)
        difference = (tiled - whole).abs()
        checks.append(TileCheck(tile, count, float(difference.max()), int((tiled != whole).sum())))
    return TilingReport(backend, precision, height, width, model.geometry.reach, halo, lattice, tuple(checks))


def _mosaic_of(tiles: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(C, height, width) filled with the given (K, C, s, s) tiles in turn."""
    side = tiles.shape[-1]
    rows = [
        torch.cat([tiles[(r + c) % len(tiles)] for c in range(-(-width // side))], dim=2)
        for r in range(-(-height // side))
    ]
    return torch.cat(rows, dim=1)[:, :height, :width].contiguous()
