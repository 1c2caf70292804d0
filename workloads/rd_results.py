"""What was measured of files and pictures, kept line by line, and what follows from it: curves, BD-rates, a verdict.

<output>/results.jsonl    a line a measurement, written as soon as it is made: a run that was stopped goes on behind it
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from library.rate_distortion import (
    BdRate,
    MeanBdRate,
    RateCurve,
    RatePoint,
    average,
    bd_rate,
    best_part,
    bytes_saved_at,
    decibels,
    mean_bd_rate,
)
from workloads.journal import Journal
from workloads.rd_methods import DENOISED_JPEG_XL, NOISE_KEPT, NOISY_JPEG_XL
from workloads.rd_scenes import RAWS, Kind

UNCODED = "uncoded"
"""The method whose settings are pictures that no file was made of: what the noise alone costs, and the denoiser."""
HIGH_ISO = 3200
TARGETS = {NOISY_JPEG_XL: 50.0, DENOISED_JPEG_XL: 20.0}
"""Percent fewer bytes than this method for equal MS-SSIM to the clean truth, on noisy raws from `HIGH_ISO` on."""
LEVELS = (0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98)
"""Of MS-SSIM, at which bytes are compared."""


@dataclass(frozen=True)
class Measurement:
    """One raw or picture by one method at one setting.

    key        names all that determines the numbers
    num_bytes  of the file; 0 of what is not coded
    photosites or pixels, of a picture
    metrics    by the names of its kind's; infinite is legal
    encoding_time, decoding_time  s
    """

    key: str
    image: str
    method: str
    setting: str
    num_bytes: int
    photosites: int
    metrics: dict[str, float]
    encoding_time: float
    decoding_time: float
    camera: str
    iso: float | None

    @property
    def point(self) -> RatePoint:
        times = {"encoding_time": self.encoding_time, "decoding_time": self.decoding_time}
        return RatePoint(8 * self.num_bytes / self.photosites, self.metrics | times)

    def to_line(self) -> str:
        # JSON has no infinity, which is what a lossless result's PSNR is.
        metrics = {name: value if math.isfinite(value) else str(value) for name, value in self.metrics.items()}
        return json.dumps(asdict(self) | {"metrics": metrics}, allow_nan=False) + "\n"

    @staticmethod
    def from_line(line: str) -> Measurement:
        """Raises ValueError, KeyError or TypeError for anything else."""
        content = json.loads(line)
        metrics = {name: float(value) for name, value in content["metrics"].items()}
        return Measurement(**content | {"metrics": metrics})


class Results(Journal[Measurement]):
    """See `Journal`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Measurement.from_line)


@dataclass(frozen=True)
class Target:
    """How a codec does against what it is to beat.

    rate      mean of the BD-rates in MS-SSIM of the raws that count
    num_behind  raws on which the codec's best quality is below the other's worst: no rate tells that
    ahead     percent of the other's bytes that the codec's smallest file saves where it looks better than the other's
              best: at least that, of the raws of which no rate can tell
    overlap   from, to: the MS-SSIM that is compared at on any of them, in dB; None where there is none
    """

    codec: str
    anchor: str
    wanted: float
    num_images: int
    rate: MeanBdRate
    num_behind: int
    ahead: tuple[float, ...]
    overlap: tuple[float, float] | None

    @property
    def is_met(self) -> bool | None:
        """None where it cannot be said: every raw must have a rate, or those that were hard would not count."""
        if self.num_behind or (self.rate.percent is not None and -self.rate.percent < self.wanted):
            return False
        told = sum(result.percent is not None for result in self.rate.per_image)
        told += sum(saved >= self.wanted for saved in self.ahead)
        return True if told and told == self.num_images else None

    def __str__(self) -> str:
        what = f"{self.codec} against {self.anchor}"
        if not self.num_images:
            return f"{what}: not decided, since no raw of ISO {HIGH_ISO} and above was measured"
        verdict = {True: "met", False: "missed", None: "not decided"}[self.is_met]
        behind = f"; on {self.num_behind} of {self.num_images} raws its best is below the other's worst"
        behind = behind if self.num_behind else ""
        if self.ahead:
            behind += (
                f"; on {len(self.ahead)} of {self.num_images} raws its smallest file is better than the other's best, "
                f"with {min(self.ahead):.1f} % fewer bytes"
            )
        if self.rate.percent is None or self.overlap is None:
            return f"{what}: {verdict}{behind or f' ({self.rate})'}"
        saved = -self.rate.percent
        counted = sum(result.percent is not None for result in self.rate.per_image)
        raws = f"{counted} of {self.num_images} raws" if counted < self.num_images else f"{counted} raws"
        low, high = (1 - 10 ** (-edge / 10) for edge in self.overlap)
        distance = f"{abs(saved - self.wanted):.1f} points {'beyond' if saved >= self.wanted else 'short'}"
        return (
            f"{what}: {abs(saved):.1f} % {'fewer' if saved >= 0 else 'more'} bytes at equal MS-SSIM (mean over {raws} "
            f"of ISO {HIGH_ISO} and above, compared from {low:.3f} to {high:.3f}){behind}; the target, "
            f"{self.wanted:g} % fewer, is {verdict}: {distance}"
        )


@dataclass(frozen=True)
class Comparison:
    """All that was measured, and what follows.

    descriptions  of all methods that were to be measured, by name, ours first
    ours          names of the codecs' curves; over raws, those that keep the noise not among them
    unavailable   method -> why it cannot run here
    errors        (image, method) -> what went wrong first
    kind          of the images
    """

    measurements: Sequence[Measurement]
    descriptions: Mapping[str, str]
    ours: Sequence[str]
    unavailable: Mapping[str, str]
    errors: Mapping[tuple[str, str], str]
    kind: Kind = RAWS

    @cached_property
    def images(self) -> list[str]:
        """Of which anything was measured."""
        return sorted({measurement.image for measurement in self.measurements})

    @cached_property
    def failures(self) -> dict[str, str]:
        """Image -> why nothing could be measured of it."""
        return {image: reason for (image, _), reason in self.errors.items() if image not in self.images}

    @cached_property
    def problems(self) -> dict[str, str]:
        """Method -> why it has no mean curve, or none at all."""
        found = dict(self.unavailable)
        for (image, method), reason in self.errors.items():
            if image in self.images:
                found.setdefault(method, f"{image}: {reason}")
        return found

    @cached_property
    def _settings(self) -> dict[str, dict[str, dict[str, RatePoint]]]:
        """method -> setting -> image -> point"""
        found: dict[str, dict[str, dict[str, RatePoint]]] = {method: {} for method in self.descriptions}
        for measurement in self.measurements:
            if measurement.method != UNCODED:
                settings = found[measurement.method].setdefault(measurement.setting, {})
                settings[measurement.image] = measurement.point
        return found

    def curves_of(self, image: str) -> dict[str, RateCurve]:
        """By method, of what was measured of this image."""
        found = {}
        for method, settings in self._settings.items():
            if points := tuple(points[image] for points in settings.values() if image in points):
                found[method] = RateCurve(method, self.descriptions[method], points)
        return found

    @cached_property
    def means(self) -> dict[str, RateCurve]:
        """By method, each setting's mean over all images; a method of which one of them lacks a point has none."""
        found = {}
        for method, settings in self._settings.items():
            if not settings or method in self.problems:
                continue
            if any(points.keys() != set(self.images) for points in settings.values()):
                continue
            text = self.descriptions[method]
            # Setting by setting: a codec's rates need not rise with its settings, and then not alike for all images.
            means = [average([RateCurve(method, text, (p,)) for p in points.values()]) for points in settings.values()]
            found[method] = RateCurve(method, text, tuple(mean.points[0] for mean in means))
        return found

    def levels(self, metric: str, image: str | None = None) -> dict[str, float]:
        """A metric of what is not coded, by name: of one image, or the mean over all. Without those that are infinite
        in dB, as the noisy input is where it is compared with itself."""
        found: dict[str, list[float]] = {}
        for measurement in self.measurements:
            if measurement.method == UNCODED and image in (None, measurement.image):
                found.setdefault(measurement.setting, []).append(measurement.metrics[metric])
        means = {name: math.fsum(values) / len(values) for name, values in found.items()}
        return {name: mean for name, mean in means.items() if np.isfinite(decibels(metric, mean))}

    def facts(self, image: str) -> Measurement:
        """Any measurement of an image: they agree in its camera, ISO and photosites."""
        return next(measurement for measurement in self.measurements if measurement.image == image)

    @property
    def anchors(self) -> list[str]:
        """Lossy methods that are not ours."""
        own = {*self.ours, *self.noise_kept}
        return [method for method, curve in self.means.items() if method not in own and len(curve.points) > 1]

    @property
    def noise_kept(self) -> list[str]:
        """Curves of codecs that were told to keep the noise."""
        return [codec + NOISE_KEPT for codec in self.ours if codec + NOISE_KEPT in self.means]

    def rate_per_image(self, anchor: str, codec: str, metric: str, images: Sequence[str]) -> MeanBdRate:
        """BD-rates of the best parts of both curves; see `mean_bd_rate`."""
        pairs = [(found[anchor], found[codec]) for found in map(self.curves_of, images)]
        anchors, codecs = ([best_part(pair[side], metric) for pair in pairs] for side in (0, 1))
        return mean_bd_rate(anchors, codecs, metric)

    def rate_of_means(self, anchor: str, codec: str, metric: str) -> BdRate:
        """BD-rate of the best parts of both mean curves."""
        return bd_rate(best_part(self.means[anchor], metric), best_part(self.means[codec], metric), metric)

    @cached_property
    def targets(self) -> list[Target]:
        """Of every codec and every method that is to be beaten and was measured, over raws."""
        if self.kind is not RAWS:
            return []
        images = [image for image in self.images if (self.facts(image).iso or 0) >= HIGH_ISO]
        found = []
        for codec in self.ours:
            for anchor, wanted in TARGETS.items():
                if codec in self.means and anchor in self.means:
                    rate = self.rate_per_image(anchor, codec, "ms_ssim", images)
                    spans = [result.overlap for result in rate.per_image if result.percent is not None]
                    ends = [span for span in spans if span is not None]
                    overlap = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None
                    num_behind = sum(self._is_behind(anchor, codec, image) for image in images)
                    saved = [self._saved_ahead(anchor, codec, image) for image in images]
                    ahead = tuple(percent for percent in saved if percent is not None)
                    found.append(Target(codec, anchor, wanted, len(images), rate, num_behind, ahead, overlap))
        return found

    def _is_behind(self, anchor: str, codec: str, image: str) -> bool:
        curves = self.curves_of(image)
        return max(curves[codec].values("ms_ssim")) < min(best_part(curves[anchor], "ms_ssim").values("ms_ssim"))

    def _saved_ahead(self, anchor: str, codec: str, image: str) -> float | None:
        """Percent of bytes that the codec's smallest file saves against the anchor's best picture, if it is better."""
        curves = self.curves_of(image)
        ours, theirs = (best_part(curves[name], "ms_ssim").points for name in (codec, anchor))
        smallest, best = min(ours, key=lambda point: point.bpp), max(theirs, key=lambda p: p.metrics["ms_ssim"])
        if smallest.metrics["ms_ssim"] <= best.metrics["ms_ssim"]:
            return None
        return 100 * (1 - smallest.bpp / best.bpp)

    def saved_at_levels(self, codec: str) -> dict[float, dict[str, float | None]]:
        """MS-SSIM -> anchor -> percent fewer bytes of the mean curves; levels that no anchor shares are left out."""
        anchors = [anchor for anchor in TARGETS if anchor in self.means]
        test = best_part(self.means[codec], "ms_ssim")
        rows = {
            level: {a: bytes_saved_at(best_part(self.means[a], "ms_ssim"), test, "ms_ssim", level) for a in anchors}
            for level in LEVELS
        }
        return {level: row for level, row in rows.items() if any(saved is not None for saved in row.values())}
