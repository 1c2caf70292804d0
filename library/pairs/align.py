"""How far two shots of one scene lie apart, from their mosaics: phase correlation, coarse to fine.

Coarse, on tiles of photosites averaged to some hundreds of pixels a side, finds a shift of any size that leaves enough
in common. Fine, on patches of 2x2 means, finds it to a fraction of a pixel: their cross spectra are summed and weighted
by how well the two images agree at each frequency (Hannan and Thomson 1973), so that noise weighs nothing and
brightness does not matter; leaving one patch out at a time gives the standard error (jackknife, Tukey 1958).

What stands still on a sensor while the scene moves would draw the answer to 0: single hot photosites are bounded by
their neighbours, and the patterns of rows and columns are left out. What clips in one image is clipped alike in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.fft
from pydantic import Field
from scipy import ndimage

from library.config import Frozen

_COARSE_SIDE = 400
"""Pixels of the longer side of the coarse images, at most."""
_PATCH = 128
"""Side of a patch in 2x2 tiles."""
_REACH = 14
"""Full-resolution pixels around the coarse shift, each way, that the fine one is looked for in."""
_RECENTERINGS = 3
_CANDIDATES, _COARSE_LEVELS = 4, 2
"""Coarse shifts that are tried before a pair is given up, at each of so many sizes of coarse pixels."""
_MOST_COHERENT = 0.9
"""Higher coherence counts no more: or the lowest frequencies, where there is the least noise, would decide alone."""
_WINDOW_SPREAD = 1.5
"""Root of the equivalent noise bandwidth of a Hann window in two dimensions, 1.5 bins a side (Harris 1978)."""
_ROOT_OFFSET = 0.1
"""Of the mean brightness: below it the square root that evens out photon noise becomes a line."""


class Matching(Frozen):
    """When a shift is believed, and how much is looked at."""

    patches: int = Field(default=24, ge=4)
    """Of the best texture; where they do not suffice, all that there are."""
    max_sigma: float = Field(default=0.25, gt=0)
    """Standard error of the shift, full-resolution pixels, above which it is not certain to the pixel."""
    min_significance: float = Field(default=7.0, gt=0)
    """Times the deviation that chance gives the correlation; the largest of unlike images is about 5."""


@dataclass(frozen=True, eq=False)
class Mosaic:
    """A raw as pairs are made of it.

    counts           uint16 (H, W) DN, RGGB, even sides; may be memory-mapped
    black_level      (4,) DN by RGGB site
    white_level      DN
    overexposure_lb  clipping level on the scale from black 0 to white 1
    """

    counts: np.ndarray
    black_level: tuple[float, ...]
    white_level: float
    overexposure_lb: float = 1.0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), full-resolution pixels."""
        return self.counts.shape[:2]

    def linear(self, sums: np.ndarray, count: int) -> np.ndarray:
        """Sums over `count` whole tiles as mean scene-linear brightness, float32."""
        black = sum(self.black_level) / 4
        scale = 1 / (self.white_level - black)
        return sums.astype(np.float32) * np.float32(scale / (4 * count)) - np.float32(black * scale)


@dataclass(frozen=True)
class Alignment:
    """shift        (dy, dx) full-resolution pixels, as in `library.pairs.shift`
    offset       the same before it was rounded
    sigma        its standard error, of the worse axis
    error        1 - correlation of the aligned patches, band-passed: 0 for equal ones, about 1 for unlike ones; grows
                 with noise, does not depend on brightness
    significance  of the correlation: see `Matching`
    ok           the shift is certain to the pixel
    """

    shift: tuple[int, int]
    offset: tuple[float, float]
    sigma: float
    error: float
    significance: float
    ok: bool


def align(gt: Mosaic, f: Mosaic, config: Matching | None = None, *, threads: int = 1) -> Alignment:
    """The shift between two shots.

    gt, f    sides of at least 128 photosites, and about equal
    threads  for Fourier transforms
    returns  for images without texture or without anything in common a shift that is not `ok`
    """
    config = config or Matching()
    views = _prepare(gt, f)
    best: Alignment | None = None
    with scipy.fft.set_workers(threads):
        for candidate in _candidates(views):
            best = _better(best, _refine(views, candidate, config, config.patches))
            if not best.ok:
                best = _better(best, _refine(views, candidate, config, None))
            if best.ok:
                break
    assert best is not None
    return best


def _candidates(views: _Views) -> Iterator[tuple[int, int]]:
    """Coarse shifts, the likeliest first; in pixels twice as large, with less noise, when all others have failed."""
    tried = set()
    for _ in range(_COARSE_LEVELS):
        for shift in _coarse_shifts(views):
            if shift not in tried:
                tried.add(shift)
                yield shift
        views = views.halved()


def _better(one: Alignment | None, other: Alignment) -> Alignment:
    if one is None:
        return other
    return max(one, other, key=lambda alignment: (alignment.ok, alignment.significance))


# --- coarse -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Views:
    """Two images with the scale on which they are compared: f times `gain` is as bright as gt, everything is cut at
    `ceiling` and measured in units of `mean`. `coarse` is one pixel for `binning` tiles each way."""

    gt: Mosaic
    f: Mosaic
    gain: float
    ceiling: float
    mean: float
    binning: int
    coarse_gt: np.ndarray
    coarse_f: np.ndarray

    def halved(self) -> _Views:
        """With coarse images of half the size."""
        halves = []
        for image in (self.coarse_gt, self.coarse_f):
            height, width = (n // 2 for n in image.shape)
            halves.append(image[: 2 * height, : 2 * width].reshape(height, 2, width, 2).mean((1, 3)))
        return replace(self, binning=2 * self.binning, coarse_gt=halves[0], coarse_f=halves[1])

    def stabilized(self, linear: np.ndarray, gain: float) -> np.ndarray:
        """Scene-linear brightness, cut where either image clips, noise about uniform."""
        relative = np.minimum(linear * np.float32(gain), np.float32(self.ceiling)) / np.float32(self.mean)
        root = np.sqrt(np.maximum(relative, 0) + np.float32(_ROOT_OFFSET))
        # The tangent continues the root below 0, where noise around black must not pile up.
        return root + np.minimum(relative, 0) * np.float32(0.5 / _ROOT_OFFSET**0.5)


def _prepare(gt: Mosaic, f: Mosaic) -> _Views:
    height, width = (max(sides) for sides in zip(gt.size, f.size, strict=True))
    binning = max(1, -(-max(height, width) // (2 * _COARSE_SIDE)))
    linear_gt, linear_f = _binned(gt, binning), _binned(f, binning)
    # Exposure may differ by stops, and so may what clips; shares of equal rank are equal light but for the noise.
    bright_gt, bright_f = (float(np.mean(np.clip(x, None, np.quantile(x, 0.9)))) for x in (linear_gt, linear_f))
    gain = bright_gt / bright_f if bright_gt > 0 and bright_f > 0 else 1.0
    return _Views(
        gt=gt,
        f=f,
        gain=gain,
        ceiling=0.98 * min(gt.overexposure_lb, gain * f.overexposure_lb),
        mean=max(bright_gt, 1e-6),
        binning=binning,
        coarse_gt=linear_gt,
        coarse_f=linear_f,
    )


def _binned(mosaic: Mosaic, binning: int) -> np.ndarray:
    """(h, w) float32 scene-linear: means of `binning` x `binning` tiles."""
    side = 2 * binning
    height, width = (n // side for n in mosaic.size)
    rows = mosaic.counts[: height * side, : width * side].reshape(height, side, width * side).sum(1, dtype=np.uint32)
    return mosaic.linear(rows.reshape(height, width, side).sum(2, dtype=np.uint32), binning**2)


def _coarse_shifts(views: _Views) -> list[tuple[int, int]]:
    """Shifts in full-resolution pixels, the likeliest first; 0 among them."""
    gt, f = (
        _flattened(views.stabilized(x, gain)) for x, gain in ((views.coarse_gt, 1.0), (views.coarse_f, views.gain))
    )
    height, width = (min(sides) for sides in zip(gt.shape, f.shape, strict=True))
    gt, f = gt[:height, :width], f[:height, :width]
    size = tuple(int(scipy.fft.next_fast_len(n, real=True) or n) for n in (height, width))
    window = np.outer(_tapered(height), _tapered(width))
    cross = np.asarray(scipy.fft.rfft2(gt * window, size)) * np.conj(np.asarray(scipy.fft.rfft2(f * window, size)))
    magnitude = np.abs(cross)
    # Not wholly whitened: where a coarse image is smooth, its highest frequencies hold rounding and noise.
    cross /= magnitude + 0.1 * float(magnitude.mean()) + 1e-20
    fy, fx = scipy.fft.fftfreq(size[0])[:, None], scipy.fft.rfftfreq(size[1])[None]
    low_passed = cross * np.exp(-((fy**2 + fx**2) / (2 * 0.18**2))).astype(np.float32)
    correlation = np.asarray(scipy.fft.irfft2(low_passed, size))
    unit = 2 * views.binning
    scored = []
    for y, x in _peaks(correlation, 2 * _CANDIDATES):
        for dy in {y, y - size[0]}:
            for dx in {x, x - size[1]}:
                scored.append((_agreement(gt, f, dy, dx), _parabolic(correlation, y, x, dy, dx)))
    scored.sort(key=lambda entry: -entry[0])
    shifts = [(round(dy * unit / 2) * 2, round(dx * unit / 2) * 2) for _, (dy, dx) in scored[:_CANDIDATES]]
    return list(dict.fromkeys([*shifts, (0, 0)]))


def _flattened(image: np.ndarray) -> np.ndarray:
    """Without its slow gradients, and with its outliers bounded."""
    detail = image - ndimage.uniform_filter(image, 15, mode="nearest")
    bound = 4 * 1.4826 * float(np.median(np.abs(detail))) + 1e-12
    return np.clip(detail, -bound, bound)


def _tapered(length: int) -> np.ndarray:
    """1 inside, falling to 0 over the outer eighths."""
    edge = max(1, length // 8)
    ramp = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    return np.concatenate([ramp, np.ones(length - 2 * edge), ramp[::-1]]).astype(np.float32)


def _peaks(correlation: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Where the largest values are, none beside another."""
    remaining = correlation.copy()
    found = []
    for _ in range(count):
        y, x = np.unravel_index(int(remaining.argmax()), remaining.shape)
        found.append((int(y), int(x)))
        rows = np.arange(y - 2, y + 3) % remaining.shape[0]
        columns = np.arange(x - 2, x + 3) % remaining.shape[1]
        remaining[np.ix_(rows, columns)] = -np.inf
    return found


def _agreement(gt: np.ndarray, f: np.ndarray, dy: int, dx: int) -> float:
    """Correlation of two coarse images where a shift brings them together, less for a small overlap; -1 for a tiny
    one."""
    height, width = gt.shape
    shared = max(0, height - abs(dy)) * max(0, width - abs(dx)) / (height * width)
    if shared < 0.15:
        return -1.0
    a = gt[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    b = f[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    energy = float(np.vdot(a, a)) * float(np.vdot(b, b))
    return float(np.vdot(a, b)) / energy**0.5 * shared**0.25 if energy > 0 else 0.0


def _parabolic(correlation: np.ndarray, y: int, x: int, dy: int, dx: int) -> tuple[float, float]:
    height, width = correlation.shape
    column = correlation[[y - 1, y, (y + 1) % height], x]
    row = correlation[y, [x - 1, x, (x + 1) % width]]
    return dy + _vertex(column), dx + _vertex(row)


def _vertex(values: np.ndarray) -> float:
    """Where the parabola through three values at -1, 0 and 1 has its top, within half a step."""
    before, here, after = (float(v) for v in values)
    curvature = before - 2 * here + after
    return min(0.5, max(-0.5, (before - after) / (2 * curvature))) if curvature < 0 else 0.0


# --- fine -------------------------------------------------------------------------------------------------------------


def _refine(views: _Views, shift: tuple[int, int], config: Matching, count: int | None) -> Alignment:
    """The shift near a first guess, from `count` patches or all. The guess is even."""
    found, at_edge = _match(views, shift, config, count)
    for _ in range(_RECENTERINGS):
        if not at_edge:
            break
        found, at_edge = _match(views, (found.shift[0] // 2 * 2, found.shift[1] // 2 * 2), config, count)
    return found


def _match(views: _Views, start: tuple[int, int], config: Matching, count: int | None) -> tuple[Alignment, bool]:
    """The shift within `_REACH` of an even one, and whether it lies on that border."""
    corners = _patch_corners(views, start, count)
    nothing = Alignment(start, (float(start[0]), float(start[1])), np.inf, 1.0, 0.0, False)
    if len(corners) < 2:
        return nothing, False
    side = _side(views, start)
    gt = _patches(views, views.gt, 1.0, corners, side)
    f = _patches(views, views.f, views.gain, [(y - start[0], x - start[1]) for y, x in corners], side)
    window = np.outer(np.hanning(side), np.hanning(side)).astype(np.float32)
    gt_spectra, f_spectra = (np.asarray(scipy.fft.rfft2((x - x.mean((1, 2), keepdims=True)) * window)) for x in (gt, f))
    cross = gt_spectra * f_spectra.conj()
    summed = cross.sum(0)
    power = np.sqrt(_power(gt_spectra) * _power(f_spectra)) + 1e-20
    passed = _passed(side)
    magnitude = np.abs(summed) + 1e-20
    # Sample coherence of n patches is 1/n where there is none; over neighbours, or noise would choose its own weights.
    coherence = ((magnitude / power) ** 2 - 1 / len(corners)) / (1 - 1 / len(corners))
    coherence = np.clip(ndimage.uniform_filter(coherence, 7, mode="wrap"), 0, _MOST_COHERENT)
    phase_weight = passed * coherence / (1 - coherence)
    weight = phase_weight / magnitude
    steps = np.arange(-_REACH, _REACH + 1)
    rows, columns = _waves(steps, side)
    correlation = (rows @ (weight * summed) @ columns).real
    y, x = (int(i) for i in np.unravel_index(int(correlation.argmax()), correlation.shape))
    at_edge = not (0 < y < len(steps) - 1 and 0 < x < len(steps) - 1)
    y, x = (min(max(i, 1), len(steps) - 2) for i in (y, x))
    # Of each patch alone, beside the peak.
    near = (rows[y - 1 : y + 2] @ (weight * cross) @ columns[:, x - 1 : x + 2]).real
    if not (total := near.sum(0)).any():
        return nothing, False
    offset, sigma = _jackknife(near)
    # Among phases of chance the correlation has this deviation; the window makes a frequency's neighbours follow it.
    chance = _WINDOW_SPREAD * (2 * float(np.square(phase_weight).sum())) ** 0.5
    significance = float(total[1, 1]) / chance if chance > 0 else 0.0
    # The plain correlation, of all frequencies that pass.
    aligned = (rows[y : y + 1] @ (passed * summed) @ columns[:, x : x + 1]).real.item()
    norm = _total(passed * _power(gt_spectra), side) ** 0.5 * _total(passed * _power(f_spectra), side) ** 0.5
    shift = (start[0] + int(steps[y]), start[1] + int(steps[x]))
    return (
        Alignment(
            shift=shift,
            offset=(shift[0] + offset[0], shift[1] + offset[1]),
            sigma=sigma,
            error=float(np.clip(1 - aligned / norm, 0, 1)) if norm > 0 else 1.0,
            significance=significance,
            ok=bool(
                not at_edge
                and total[1, 1] >= total.max()
                and sigma <= config.max_sigma
                and significance >= config.min_significance
            ),
        ),
        at_edge,
    )


def _side(views: _Views, start: tuple[int, int]) -> int:
    """Of a patch, in tiles: smaller for small images, so that there are several."""
    shared = (min(gt, f) - abs(s) for gt, f, s in zip(views.gt.size, views.f.size, start, strict=True))
    smallest = min(shared) // 2
    return min(_PATCH, max(32, smallest // 3 // 8 * 8))


def _patch_corners(views: _Views, start: tuple[int, int], count: int | None) -> list[tuple[int, int]]:
    """Top-left corners in the clean image, even photosites, of patches that lie in both images: those of the most
    texture."""
    side = 2 * _side(views, start)
    axes = []
    for s, gt, f in zip(start, views.gt.size, views.f.size, strict=True):
        first, last = max(0, s), min(gt, f + s) - side
        number = (last - first) // side + 1
        if last < first:
            return []
        # Spread over the whole: the rest that no patch fits into lies between them.
        axes.append([first + round(i * (last - first) / max(1, number - 1) / 2) * 2 for i in range(number)])
    corners = [(min(y, views.gt.size[0] - side) // 2 * 2, x // 2 * 2) for y in axes[0] for x in axes[1]]
    if count is None or len(corners) <= count:
        return corners
    unit = 2 * views.binning
    coarse = views.stabilized(views.coarse_gt, 1.0)
    texture = []
    for y, x in corners:
        part = coarse[y // unit : (y + side) // unit, x // unit : (x + side) // unit]
        texture.append(float(np.abs(np.diff(part, axis=0)).mean() + np.abs(np.diff(part, axis=1)).mean()))
    return [corners[i] for i in np.argsort(texture, kind="stable")[::-1][:count]]


def _patches(views: _Views, mosaic: Mosaic, gain: float, corners: list[tuple[int, int]], side: int) -> np.ndarray:
    """(n, side, side) float32: 2x2 means, stabilized; no pixel passes its four neighbours."""
    counts = np.stack([mosaic.counts[y : y + 2 * side, x : x + 2 * side] for y, x in corners])
    rows = counts[:, ::2].astype(np.uint32) + counts[:, 1::2]
    image = views.stabilized(mosaic.linear(rows[..., ::2] + rows[..., 1::2], 1), gain)
    up, down, left, right = image[:, :-2, 1:-1], image[:, 2:, 1:-1], image[:, 1:-1, :-2], image[:, 1:-1, 2:]
    highest = np.maximum(np.maximum(up, down), np.maximum(left, right))
    lowest = np.minimum(np.minimum(up, down), np.minimum(left, right))
    bounded = image.copy()
    np.clip(image[:, 1:-1, 1:-1], lowest, highest, out=bounded[:, 1:-1, 1:-1])
    return bounded


def _power(spectra: np.ndarray) -> np.ndarray:
    return (np.real(spectra) ** 2 + np.imag(spectra) ** 2).sum(0)


def _passed(side: int) -> np.ndarray:
    """(side, side / 2 + 1) float32: frequencies that count. Not the lowest; not those of whole rows and columns; and
    not the highest, where 2x2 means alias."""
    fy, fx = scipy.fft.fftfreq(side)[:, None], scipy.fft.rfftfreq(side)[None]
    radius = np.hypot(fy, fx)
    passed = np.clip((0.45 - radius) / 0.15, 0, 1) * np.clip((radius - 2 / side) * side / 2, 0, 1)
    return (passed * (np.abs(fy) > 1.5 / side) * (np.abs(fx) > 1.5 / side)).astype(np.float32)


def _waves(steps: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The two factors of an inverse transform at shifts of `steps` full-resolution pixels, half a tile each."""
    fy, fx = scipy.fft.fftfreq(side), scipy.fft.rfftfreq(side)
    twice = np.where((fx == 0) | (fx == 0.5), 1, 2)
    rows = np.exp(2j * np.pi * np.outer(steps / 2, fy))
    columns = np.exp(2j * np.pi * np.outer(fx, steps / 2)) * twice[:, None]
    return rows.astype(np.complex64), columns.astype(np.complex64)


def _total(power: np.ndarray, side: int) -> float:
    """Sum over the whole spectrum of one that is stored by halves."""
    fx = scipy.fft.rfftfreq(side)
    return float((power * np.where((fx == 0) | (fx == 0.5), 1, 2)).sum())


def _jackknife(near: np.ndarray) -> tuple[tuple[float, float], float]:
    """Offset of the peak from the middle of (patches, 3, 3) correlations, and its standard error, both axes' worst."""
    total = near.sum(0)

    def tops(values: np.ndarray) -> tuple[float, float]:
        return _vertex(values[:, 1]), _vertex(values[1])

    without = np.array([tops(total - one) for one in near])
    variance = (len(near) - 1) / len(near) * ((without - without.mean(0)) ** 2).sum(0)
    return tops(total), float(variance.max() ** 0.5)
