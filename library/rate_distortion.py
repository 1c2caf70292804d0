"""Rate-distortion curves: how much of one codec's bytes another needs for equal quality, in numbers and in files.

A point's rate is bits of the file per photosite of the mosaic, or per pixel of an RGB picture; its metrics have the
names of `library.metrics`. Differences are taken in log rate over the quality that both curves have, PSNR in dB and
MS-SSIM as -10 log10(1 - x): Bjontegaard 2001, "Calculation of average PSNR differences between RD-curves" (VCEG-M33),
with the piecewise cubic interpolation of later test conditions (Bossen 2013, JCTVC-L1100) and without extrapolation.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from library.errors import ConfigError, DataError
from library.files.atomic import whole_file

FEWEST_POINTS = 4
SMALLEST_OVERLAP = 0.25
"""Of the shorter curve's range. The package `bjontegaard` judges by the range that both span together, which settings
far beyond the other curve's would lengthen without making the comparison any worse; what is compared is said beside
every result."""


@dataclass(frozen=True)
class RatePoint:
    """One codec at one setting.

    bpp      above 0: bits of the file per photosite, or per pixel of an RGB picture
    metrics  by name: `psnr` and `ms_ssim`, a suffix for the domain, and whatever else belongs to it (`seconds`)
    """

    bpp: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class RateCurve:
    """One codec over its settings: points by rising rate, all with the same metrics.

    raises  DataError for no points, a rate not above 0, NaN, or points that differ in their metrics
    """

    name: str
    description: str
    points: tuple[RatePoint, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise DataError(f"curve '{self.name}' has no points: measure at least one setting")
        if bad := [point.bpp for point in self.points if not 0 < point.bpp < math.inf]:
            raise DataError(f"curve '{self.name}' has the rate {bad[0]:g} bpp: a file has at least one byte")
        for point in self.points:
            if differing := point.metrics.keys() ^ self.points[0].metrics.keys():
                raise DataError(
                    f"curve '{self.name}': {', '.join(sorted(differing))} is not measured at all points: measure every "
                    "metric at every setting"
                )
            if unknown := [name for name, value in point.metrics.items() if math.isnan(value)]:
                raise DataError(f"curve '{self.name}': {unknown[0]} is NaN at {point.bpp:.3g} bpp: measure it again")
        object.__setattr__(self, "points", tuple(sorted(self.points, key=lambda point: point.bpp)))

    @property
    def bpp(self) -> list[float]:
        return [point.bpp for point in self.points]

    @property
    def metrics(self) -> list[str]:
        return list(self.points[0].metrics)

    def values(self, metric: str) -> list[float]:
        """By rising rate.

        raises  DataError for a metric that was not measured
        """
        if metric not in self.points[0].metrics:
            raise DataError(f"curve '{self.name}' has no {metric}; measured were: {', '.join(self.metrics)}")
        return [point.metrics[metric] for point in self.points]


def decibels(metric: str, values: float | Sequence[float]) -> np.ndarray:
    """A metric on the scale that curves are compared on: PSNR as it is, MS-SSIM as -10 log10(1 - x).

    returns  of the shape of `values`; infinite for an MS-SSIM of 1
    raises   ConfigError for another metric
    """
    stem = metric.rpartition("/")[2].partition(".")[0]
    if stem not in _DECIBELS:
        raise ConfigError(f"curves are compared in psnr or ms_ssim, as in psnr.linear, but not in '{metric}'")
    with np.errstate(divide="ignore"):
        return _DECIBELS[stem](np.asarray(values, dtype=np.float64))


_DECIBELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "psnr": lambda x: x,
    "ms_ssim": lambda x: -10 * np.log10(1 - x),
}


# --- comparisons ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BdRate:
    """Bjontegaard's delta rate, or why there is none.

    percent  more bytes of the test than of the anchor at equal quality, on average; below 0 the test saves. None where
             it cannot be said
    overlap  from, to: the quality that both curves have and that the average is over, in dB (see `decibels`); None
             where they have none in common
    share    the overlap's part of the shorter curve's range, 0 ... 1
    reason   in words where `percent` is None, empty elsewhere
    """

    percent: float | None
    overlap: tuple[float, float] | None
    share: float
    reason: str = ""

    def __str__(self) -> str:
        if self.percent is None or self.overlap is None:
            return f"none: {self.reason}"
        low, high = self.overlap
        return f"{self.percent:+.1f} % over {low:.2f} ... {high:.2f} dB, {self.share:.0%} of the shorter curve"


def bd_rate(anchor: RateCurve, test: RateCurve, metric: str, *, smallest_overlap: float = SMALLEST_OVERLAP) -> BdRate:
    """How many percent more bytes `test` takes than `anchor` at equal quality, on average over their common quality.

    There is no number, but a reason, for a curve of fewer than 4 points, for one whose quality does not rise with its
    rate (see `best_part`), and where less is common than `smallest_overlap` of the shorter curve's range.

    raises  DataError when a curve lacks the metric, ConfigError for a metric that curves are not compared in
    """
    (low, high), share = _overlap(anchor, test, metric)
    overlap = (low, high) if low < high else None
    if reason := _why_not(anchor, metric, FEWEST_POINTS) or _why_not(test, metric, FEWEST_POINTS):
        return BdRate(None, overlap, share, reason)
    if overlap is None or share < smallest_overlap:
        common = f"have {share:.0%} of the shorter one's range in common" if overlap else "have no quality in common"
        reason = f"'{anchor.name}' and '{test.name}' {common} in {metric}: measure settings nearer to each other"
        return BdRate(None, overlap, share, reason)
    from bjontegaard import bd_rate as bjontegaard_delta_rate  # here, since it loads all of pyplot

    percent = bjontegaard_delta_rate(
        anchor.bpp,
        decibels(metric, anchor.values(metric)),
        test.bpp,
        decibels(metric, test.values(metric)),
        method="pchip",
        require_matching_points=False,
        min_overlap=0,  # judged above
    )
    assert isinstance(percent, float), "it was not asked for its interpolators"
    return BdRate(float(percent), overlap, share)


@dataclass(frozen=True)
class MeanBdRate:
    """The mean of each image's BD-rate, which is not the BD-rate of the mean curve: large savings on easy images weigh
    as much as on those that fill the disk.

    percent   None when no image has one
    per_image in the order they were given
    """

    percent: float | None
    per_image: tuple[BdRate, ...]

    def __str__(self) -> str:
        counted = [result for result in self.per_image if result.percent is not None]
        if self.percent is None:
            return "none: " + "; ".join(dict.fromkeys(result.reason for result in self.per_image))
        return f"{self.percent:+.1f} %, mean over {len(counted)} of {len(self.per_image)} images"


def mean_bd_rate(anchors: Sequence[RateCurve], tests: Sequence[RateCurve], metric: str) -> MeanBdRate:
    """`bd_rate` of each image's own curves, and its mean over the images that have one.

    anchors, tests  a curve an image, in the same order
    """
    results = tuple(bd_rate(anchor, test, metric) for anchor, test in zip(anchors, tests, strict=True))
    known = [result.percent for result in results if result.percent is not None]
    return MeanBdRate(math.fsum(known) / len(known) if known else None, results)


def bytes_saved_at(anchor: RateCurve, test: RateCurve, metric: str, level: float) -> float | None:
    """How many percent fewer bytes `test` takes than `anchor` for a quality of `level`; below 0 it takes more.

    level    of the metric as it is measured: 0.95 of MS-SSIM
    returns  None where a curve does not reach the level or lies above it, or its quality does not rise with its rate
    raises   as `bd_rate`
    """
    quality = float(decibels(metric, level))
    (low, high), _ = _overlap(anchor, test, metric)
    if any(_why_not(curve, metric, fewest=2) for curve in (anchor, test)) or not low <= quality <= high:
        return None
    rates = [
        PchipInterpolator(decibels(metric, curve.values(metric)), np.log(curve.bpp))(quality)
        for curve in (anchor, test)
    ]
    return 100 * (1 - math.exp(rates[1] - rates[0]))


def best_part(curve: RateCurve, metric: str) -> RateCurve:
    """The curve without the settings that nobody would choose: those that a cheaper one equals or surpasses.

    A codec that is given noise and judged by the clean truth gets worse again where it begins to keep the noise. What
    this leaves always rises, and so can be compared.
    """
    qualities = decibels(metric, curve.values(metric))
    best, kept = -math.inf, []
    for index in sorted(range(len(qualities)), key=lambda i: (curve.points[i].bpp, -qualities[i])):
        if qualities[index] > best:
            best = qualities[index]
            kept.append(curve.points[index])
    return RateCurve(curve.name, curve.description, tuple(kept))


def average(curves: Sequence[RateCurve]) -> RateCurve:
    """The mean curve of one codec over images: mean rate and mean metrics of each setting (dB are averaged as dB,
    MS-SSIM as MS-SSIM), as published lines are.

    curves  one an image, of one codec, with the same settings: the i-th points of all belong together
    raises  DataError when they differ in their number of points or in their metrics
    """
    first = curves[0]
    for curve in curves:
        if len(curve.points) != len(first.points) or set(curve.metrics) != set(first.metrics):
            raise DataError(
                f"curve '{curve.name}' has {len(curve.points)} points of {', '.join(curve.metrics)}, but "
                f"'{first.name}' has {len(first.points)} of {', '.join(first.metrics)}: measure all images alike"
            )

    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)

    points = tuple(
        RatePoint(
            mean([point.bpp for point in setting]),
            {name: mean([point.metrics[name] for point in setting]) for name in first.metrics},
        )
        for setting in zip(*(curve.points for curve in curves), strict=True)
    )
    return RateCurve(first.name, first.description, points)


def _overlap(anchor: RateCurve, test: RateCurve, metric: str) -> tuple[tuple[float, float], float]:
    """From and to of the common quality in dB, from above to where there is none; its share of the shorter range."""
    ranges = [decibels(metric, curve.values(metric)) for curve in (anchor, test)]
    starts, ends = [float(r.min()) for r in ranges], [float(r.max()) for r in ranges]
    low, high = max(starts), min(ends)
    shorter = min(end - start for start, end in zip(starts, ends, strict=True))
    return (low, high), (max(high - low, 0.0) / shorter if 0 < shorter < math.inf else 0.0)


def _why_not(curve: RateCurve, metric: str, fewest: int) -> str:
    """Why this curve cannot be interpolated, empty when it can."""
    if len(curve.points) < fewest:
        return f"'{curve.name}' has {len(curve.points)} points, {fewest} are needed: measure more settings"
    quality = decibels(metric, curve.values(metric))
    if not np.isfinite(quality).all():
        return f"'{curve.name}' has a {metric} without a finite dB, as a lossless result has: leave that point out"
    for (before, after), rising in zip(
        zip(curve.points, curve.points[1:], strict=False), np.diff(quality) > 0, strict=True
    ):
        if not (rising and after.bpp > before.bpp):
            return (
                f"'{curve.name}' does not rise: {metric} is {before.metrics[metric]:.4g} at {before.bpp:.3g} bpp and "
                f"{after.metrics[metric]:.4g} at {after.bpp:.3g}; compare its best part"
            )
    return ""


# --- files ------------------------------------------------------------------------------------------------------------

# CompressAI's spelling of what it measures on RGB pictures; older results lack the suffix.
_TO_COMPRESSAI = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb"}
_FROM_COMPRESSAI = {"psnr-rgb": "psnr", "ms-ssim-rgb": "ms_ssim", "ms-ssim": "ms_ssim"}


def to_compressai_json(curve: RateCurve) -> dict[str, Any]:
    """As the files that CompressAI's `utils.plot` draws: name, description, results with lists by rising rate.

    `psnr` and `ms_ssim` become `psnr-rgb` and `ms-ssim-rgb`; other metrics keep their names. One that is infinite
    somewhere, as the PSNR of a lossless result, is left out, since JSON has no infinity.
    """
    finite = [name for name in curve.metrics if all(map(math.isfinite, curve.values(name)))]
    metrics = {_TO_COMPRESSAI.get(name, name): curve.values(name) for name in finite}
    return {"name": curve.name, "description": curve.description, "results": {"bpp": curve.bpp, **metrics}}


def from_compressai_json(content: Mapping[str, Any]) -> RateCurve:
    """The inverse of `to_compressai_json`, also for the files of CompressAI itself.

    raises  DataError when it has no such results
    """
    try:
        name, results = str(content["name"]), dict(content["results"])
        return _curve(name, str(content.get("description", "")), results)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"is no rate-distortion curve in CompressAI's form ({error!r}): it needs name, and results with bpp and "
            "lists of equal length"
        ) from None


def read_kodak_reference(path: str | Path) -> tuple[RateCurve, ...]:
    """Published lines on the 24 Kodak pictures, bits per RGB pixel.

    path    JSON with dataset, note, and curves: name -> lists bpp, psnr and, where published, ms_ssim
    raises  DataError for another content, and when there is no such file
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        source = f"{content['dataset']}: {content['note']}"
        return tuple(_curve(name, source, results) for name, results in content["curves"].items())
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: holds no reference curves ({error!r}): it needs dataset, note and curves") from None


def write_csv(path: str | Path, curves: Sequence[RateCurve]) -> None:
    """A row a point: curve, bpp and every metric that any curve has, empty where this one has it not. Whole or not at
    all."""
    metrics = list(dict.fromkeys(name for curve in curves for name in curve.metrics))
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["curve", "bpp", *metrics])
        for curve in curves:
            for point in curve.points:
                rows.writerow([curve.name, point.bpp, *(point.metrics.get(name, "") for name in metrics)])


def _curve(name: str, description: str, results: Mapping[str, Sequence[float]]) -> RateCurve:
    """Of lists of equal length, in either spelling."""
    metrics = {_FROM_COMPRESSAI.get(key, key): values for key, values in results.items() if key != "bpp"}
    points = (
        RatePoint(float(bpp), {key: float(value) for key, value in zip(metrics, values, strict=True)})
        for bpp, *values in zip(results["bpp"], *metrics.values(), strict=True)
    )
    return RateCurve(name, description, tuple(points))
