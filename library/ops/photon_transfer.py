"""Photon transfer: the noise of a sensor from how the variance of pictures grows with their brightness.

In flat places the variance of neighbouring samples is noise, Var(x) = a x + b; in others it is noise and texture. The
blocks of a picture are taken for a mixture of the two. White noise has the same variance behind every filter of unit
gain, and texture has less behind one of higher order: that two filters agree is the test of whether an answer can be
trusted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

SIDE = 16
"""Samples of one colour a side of a block."""
_ORDERS = (2, 3)
"""Of the filters: taps a side. By the last one the answer is given, as it sees the least texture."""
_STEPS = 100
_MOST_SAMPLES = 40_000
"""Blocks beyond that add nothing to a fit of two numbers."""
_LEAST_BLOCKS = 100
_LEAST_SPAN = 0.2
"""Of full scale, that flat blocks must span in brightness, or a and b cannot be told apart."""
_MOST_DISAGREEMENT = 0.08
"""Between the filters, in a."""
_MOST_UNCERTAIN = 0.05
"""Standard error of a by the fit itself, over a."""
_CLIPPED = 0.95


@dataclass(frozen=True)
class Blocks:
    """Means and variances of the blocks of some pictures, for each filter."""

    levels: tuple[np.ndarray, ...]
    """(blocks,) float64 scene-linear, for each filter."""
    variances: tuple[np.ndarray, ...]

    @staticmethod
    def of(packed: np.ndarray) -> Blocks:
        """
        packed   (planes, h, w) samples of one colour each, scene-linear: black at 0, white at 1, unclipped at black
        returns  those blocks in which nothing is near white
        """
        parts = [_blocks_behind(packed.astype(np.float64), order) for order in _ORDERS]
        return Blocks(tuple(levels for levels, _ in parts), tuple(variances for _, variances in parts))

    @staticmethod
    def join(parts: Sequence[Blocks]) -> Blocks:
        """Those of several pictures of one sensor at one gain."""
        return Blocks(
            *(
                tuple(np.concatenate([getattr(part, name)[i] for part in parts]) for i in range(len(_ORDERS)))
                for name in ("levels", "variances")
            )
        )


@dataclass(frozen=True)
class PhotonTransfer:
    """The noise Var(x) = a x + b of one sensor at one gain, and how far it can be believed."""

    a: float
    b: float
    a_error: float
    """Relative, one sigma: of the fit, and of the filters' disagreement."""
    flat_share: float
    """Share of the blocks that are flat."""
    num_blocks: int
    """That are flat."""
    span: tuple[float, float]
    """Brightness of the darkest and of the brightest flat blocks (1st and 99th percentile)."""
    doubt: str | None
    """Why a and b cannot be trusted; None when they can."""


def fit_photon_transfer(blocks: Blocks) -> PhotonTransfer:
    """Photon and read noise of the sensor that took the blocks; `doubt` says where they do not tell."""
    fits = [_fit(x, v, _shape(order)) for x, v, order in zip(blocks.levels, blocks.variances, _ORDERS, strict=True)]
    coarse, fine = fits
    disagreement = abs(fine.a / coarse.a - 1)
    num_flat = round(fine.flat.sum())
    span = (0.0, 0.0)
    if num_flat:
        span = tuple(np.quantile(blocks.levels[-1][fine.flat > 0.5], [0.01, 0.99])) if (fine.flat > 0.5).any() else span
    doubt = None
    if num_flat < _LEAST_BLOCKS:
        doubt = f"only {num_flat} of {len(fine.flat)} blocks are flat: photograph something even, out of focus"
    elif span[1] - span[0] < _LEAST_SPAN:
        doubt = (
            f"what is flat spans {span[0]:.2f} to {span[1]:.2f} of full scale only: add brighter and darker pictures"
        )
    elif disagreement > _MOST_DISAGREEMENT:
        doubt = f"texture is taken for noise (two filters differ by {disagreement:.0%}): photograph something even"
    elif fine.a_error > _MOST_UNCERTAIN:
        doubt = f"a is known to {fine.a_error:.0%} only: add pictures"
    return PhotonTransfer(
        a=fine.a,
        b=fine.b,
        a_error=float(np.hypot(fine.a_error, disagreement / 2)),
        flat_share=num_flat / max(1, len(fine.flat)),
        num_blocks=num_flat,
        span=(float(span[0]), float(span[1])),
        doubt=doubt,
    )


@dataclass(frozen=True)
class _Fit:
    a: float
    b: float
    a_error: float
    flat: np.ndarray
    """(blocks,) probability of each that it is flat."""


def _fit(x: np.ndarray, v: np.ndarray, shape: float) -> _Fit:
    """Expectation maximisation of a mixture of flat blocks, whose variance over a x + b is Gamma distributed, and of
    textured ones, whose variance is anything above, uniform in the logarithm."""
    if len(x) < _LEAST_BLOCKS:
        return _Fit(1e-12, 0.0, np.inf, np.zeros(len(x)))
    if len(x) > _MOST_SAMPLES:
        chosen = np.random.default_rng(0).choice(len(x), _MOST_SAMPLES, replace=False)
        part = _fit(x[chosen], v[chosen], shape)
        return _Fit(part.a, part.b, part.a_error, _flatness(v / (part.a * x + part.b), shape, 0.5))
    a, b = _lower_envelope(x, v, shape)
    share, flat, normal = 0.5, np.ones(len(x)), np.eye(2)
    for _ in range(_STEPS):
        mean = a * x + b
        flat = _flatness(v / mean, shape, share)
        share = float(flat.mean())
        weight = flat / mean**2  # a Gamma variable's variance is that of its mean squared
        normal = np.array([[(weight * x * x).sum(), (weight * x).sum()], [(weight * x).sum(), weight.sum()]])
        target = np.array([(weight * x * v).sum(), (weight * v).sum()])
        if share < 1e-3 or np.linalg.cond(normal) > 1e16:
            return _Fit(a, b, np.inf, flat)
        a, b = np.linalg.solve(normal, target)
        if b < 0:
            a, b = target[0] / normal[0, 0], 0.0
        a, b = max(float(a), 1e-12), max(float(b), 1e-14)
    return _Fit(a, b, float(np.sqrt(np.linalg.inv(normal * shape)[0, 0]) / a), flat)


def _flatness(ratio: np.ndarray, shape: float, share: float) -> np.ndarray:
    """The probability that a block is flat, by its variance over that of noise."""
    flat = share * stats.gamma.pdf(ratio, shape, scale=1 / shape)
    textured = (1 - share) / (ratio * np.log(max(ratio.max(), 10.0) / _TEXTURE_FROM))
    return flat / np.maximum(flat + np.where(ratio > _TEXTURE_FROM, textured, 0), 1e-300)


_TEXTURE_FROM = 0.8
"""Times the variance of noise: a textured block has no less, but for chance."""


def _lower_envelope(x: np.ndarray, v: np.ndarray, shape: float) -> tuple[float, float]:
    """(a, b) to start from: a line through the least variances of each brightness."""
    order = np.argsort(x, kind="stable")
    points = []
    for part in np.array_split(order, np.clip(len(order) // 40, 2, 16)):
        least = np.sort(v[part])[: max(1, len(part) // 10)]
        points.append((x[part].mean(), least.mean()))
    level, variance = np.array(points).T
    variance = np.maximum(variance, 1e-14) / stats.gamma.ppf(0.05, shape, scale=1 / shape)
    design = np.stack([level, np.ones_like(level)], axis=1) / variance[:, None]
    (a, b), *_ = np.linalg.lstsq(design, np.ones_like(variance), rcond=None)
    return max(float(a), 1e-8), max(float(b), 1e-12)


def _blocks_behind(packed: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    filtered = _filtered(packed, order)
    samples = packed[:, : filtered.shape[1], : filtered.shape[2]]
    squares, levels = _cut(filtered) ** 2, _cut(samples)
    variances, means = squares.mean(1), levels.mean(1)
    # A block of no variance at all is filler, or clipped at black.
    usable = (levels.max(1, initial=0.0) < _CLIPPED) & (variances > 0)
    return means[usable], variances[usable]


def _filtered(packed: np.ndarray, order: int) -> np.ndarray:
    """Differences along both axes, of first order (2 taps) or second (3 taps), of unit gain for white noise."""
    if order == 2:
        rows = packed[:, 1:] - packed[:, :-1]
        return (rows[:, :, 1:] - rows[:, :, :-1]) / 2
    rows = packed[:, 2:] - 2 * packed[:, 1:-1] + packed[:, :-2]
    return (rows[:, :, 2:] - 2 * rows[:, :, 1:-1] + rows[:, :, :-2]) / 6


def _cut(planes: np.ndarray) -> np.ndarray:
    """(planes, h, w) -> (blocks, SIDE ** 2)."""
    count, height, width = planes.shape
    rows, columns = height // SIDE, width // SIDE
    blocks = planes[:, : rows * SIDE, : columns * SIDE].reshape(count, rows, SIDE, columns, SIDE)
    return blocks.transpose(0, 1, 3, 2, 4).reshape(-1, SIDE**2)


@functools.cache
def _shape(order: int) -> float:
    """Of the Gamma distribution that a flat block's variance has: by a fixed simulation, as filtered neighbours are
    correlated."""
    noise = np.random.default_rng(0).standard_normal((1, 1024, 1024))
    return float(1 / (_cut(_filtered(noise, order)) ** 2).mean(1).var())
