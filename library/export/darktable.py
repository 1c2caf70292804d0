"""What darktable makes of a raw with a Bayer graph of a package, written from its contract: to compare with our engine.

The mosaic is cropped to RGGB and mirrored inside that rectangle. Tiles of T packed pixels start every T - 64; each
sees 32 beyond its own on every side, and all of it is used: over the 64 around a seam, two results (four at corners)
cross over linearly. Of the camera RGB each photosite keeps its own colour.

Source: darktable, src/common/ai/restore_raw_bayer.c.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from library.bundle import Bundle
from library.errors import BundleError
from library.export.dtpackage import OVERLAP, Package
from library.files.raw import RawImage
from library.inference.backends.onnx import onnx_session
from library.inference.engine import DEFAULT_TILE, Engine
from library.ops.cfa import crop_to_rggb, mirror_pad, pack_cfa, rggb_offset, sample_cfa
from library.ops.levels import denormalize_levels, normalize_levels


@dataclass(frozen=True)
class DarktableMosaic:
    """A denoised mosaic, of the raw cropped to RGGB."""

    mosaic: np.ndarray
    """(H, W) float32 DN, clipped to 0 ... white, before it is rounded"""
    weight: np.ndarray
    """(H, W) share of it that comes from results farther from their tile's border than the network sees, 0 to 1: 1
    where the result should be the whole image's"""


@dataclass(frozen=True)
class Comparison:
    """A package in darktable's way against our engine with its bundle."""

    inside: float
    """Largest difference where tiles and borders play no part, of the range from black to white."""
    inside_share: float
    """Of all photosites, how many that is."""
    seams: float
    """Largest difference elsewhere, of the range."""
    seams_rms: float

    def __str__(self) -> str:
        return (
            f"darktable's tiles against our engine: at most {self.inside:.2g} of white inside "
            f"({self.inside_share:.0%} of photosites), {self.seams:.2g} around seams and borders "
            f"(rms {self.seams_rms:.2g})"
        )


def compare_with_engine(package: Package, bundle: Bundle, raw: RawImage) -> Comparison:
    """Both ways of denoising a raw.

    raises  BundleError when the package has no Bayer graph, its result inside of tiles is not the engine's, or cannot
            be, since darktable gives an arbitrary gain another brightness in every tile
    """
    if bundle.gain != "absolute":
        raise BundleError(
            bundle.path,
            "has an arbitrary gain, which darktable matches tile by tile and our engine once for an image: "
            "leave raw out, or use a bundle of absolute gain",
        )
    theirs = denoise_as_darktable(package, raw, reach=bundle.model.geometry.reach)
    # The engine mirrors a line onto other phases where darktable crops one: both are given what starts at R.
    cropped = _rggb(raw)
    ours = np.empty_like(theirs.mosaic)
    for top, left, pixels in Engine(bundle, tile=DEFAULT_TILE).camera_rgb(cropped):
        rows, columns = pixels.shape[1:]
        ours[top : top + rows, left : left + columns] = sample_cfa(pixels, "RGGB").numpy()
    difference = np.abs(theirs.mosaic - _counts(torch.from_numpy(ours), cropped).numpy())
    difference /= cropped.white_level - cropped.black_level.min()
    inside = theirs.weight >= 1
    found = Comparison(
        inside=float(difference[inside].max(initial=0)),
        inside_share=float(inside.mean()),
        seams=float(difference[~inside].max(initial=0)),
        seams_rms=float(np.sqrt(np.mean(difference[~inside] ** 2))) if not inside.all() else 0.0,
    )
    if not found.inside <= (tolerance := bundle.manifest["golden_tolerance"]):
        raise BundleError(
            bundle.path,
            f"and its package differ by {found.inside:.3g} of white on {raw.path}, and {tolerance:g} is allowed: "
            "make the package again",
        )
    return found


def denoise_as_darktable(package: Package, raw: RawImage, *, reach: int) -> DarktableMosaic:
    """A raw denoised at full strength by the package's Bayer graph, in ONNX Runtime.

    reach   packed pixels that the network sees
    raises  BundleError when the package has no Bayer graph
    """
    if "model_bayer" not in package.graphs:
        raise BundleError(package.config.id, "holds no Bayer graph, which a mosaic needs")
    run = onnx_session(package.graphs["model_bayer"])
    (side,) = package.config.attributes.input_sizes
    bayer = package.config.attributes.model_bayer
    assert bayer is not None
    cropped = _rggb(raw)
    mosaic = normalize_levels(
        torch.from_numpy(cropped.mosaic), torch.from_numpy(cropped.black_level), float(cropped.white_level)
    )
    height, width = (lines // 2 for lines in mosaic.shape)
    step = side - 2 * OVERLAP
    for dim, lines in ((0, height), (1, width)):
        mosaic = mirror_pad(mosaic, dim, 2 * OVERLAP, 2 * (OVERLAP + -lines % step))
    packed = pack_cfa(mosaic)
    result, weight = (np.zeros((2 * height + 4 * side, 2 * width + 4 * side), np.float32) for _ in range(2))
    clean = _distance(side) >= reach
    for top in range(0, height, step):
        for left in range(0, width, step):
            x = packed[None, :, top : top + side, left : left + side].contiguous().numpy()
            y = torch.from_numpy(run(x))[0]
            if bayer.output_scale == "match_gain":
                y = y * (float(x.mean()) / float(y.mean()))
            rows = _ramp(side, before=top > 0, after=top + step < height)
            columns = _ramp(side, before=left > 0, after=left + step < width)
            share = rows[:, None] * columns
            # The window begins an overlap above and left of its own part, as does the array that collects it.
            place = (slice(2 * top, 2 * (top + side)), slice(2 * left, 2 * (left + side)))
            result[place] += share * sample_cfa(y).numpy()
            # Beyond the picture there is nothing but mirrored lines, so its border counts as a tile's.
            weight[place] += share * (clean[:, None] & clean)
    inner = (slice(2 * OVERLAP, 2 * (OVERLAP + height)), slice(2 * OVERLAP, 2 * (OVERLAP + width)))
    border = np.add.outer(_near(2 * height, 2 * reach), _near(2 * width, 2 * reach))
    counts = _counts(torch.from_numpy(result[inner].copy()), cropped).numpy()
    # Ramps sum to 1 but for rounding.
    return DarktableMosaic(counts, np.where(border, 0, np.where(weight[inner] > 1 - 1e-5, 1, weight[inner])))


def _rggb(raw: RawImage) -> RawImage:
    raw.require_bayer("darktable's packages take Bayer mosaics only: compare with one of those")
    black_level = np.roll(raw.black_level, rggb_offset(raw.cfa), (0, 1))
    cropped = crop_to_rggb(torch.from_numpy(raw.mosaic), raw.cfa).contiguous().numpy()
    return replace(raw, mosaic=cropped, cfa="RGGB", black_level=black_level, camera_white_level=None)


def _counts(scene_linear: torch.Tensor, raw: RawImage) -> torch.Tensor:
    counts = denormalize_levels(scene_linear, torch.from_numpy(raw.black_level), float(raw.white_level))
    return counts.clamp(0, raw.white_level)


def _ramp(side: int, *, before: bool, after: bool) -> np.ndarray:
    """(2 * side,) weight of a tile's rows or columns of photosites: crossing over with a neighbour, or 0 beyond the
    tile's own part where it has none."""
    overlap, length = 2 * OVERLAP, 2 * side
    rise = (np.arange(2 * overlap, dtype=np.float32) + 0.5) / (2 * overlap)
    weight = np.ones(length, np.float32)
    weight[: 2 * overlap] = rise if before else np.repeat([0, 1], overlap)
    weight[-2 * overlap :] = rise[::-1] if after else np.repeat([1, 0], overlap)
    return weight


def _distance(side: int) -> np.ndarray:
    """(2 * side,) packed pixels from each photosite to the nearer border of its tile."""
    line = np.arange(2 * side) // 2
    return np.minimum(line, side - 1 - line)


def _near(length: int, distance: int) -> np.ndarray:
    """(length,) whether a line is so near to an end."""
    line = np.arange(length)
    return np.minimum(line, length - 1 - line) < distance
