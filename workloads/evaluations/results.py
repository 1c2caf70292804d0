"""What was measured of images, kept line by line, and what follows from it: means with intervals, differences, curves.

<output>/results.jsonl     a line a measurement, written as soon as it is made: a run that was stopped goes on behind it
<output>/images.parquet    a row an image and method of the evaluation as it is now
<output>/evaluation.json   everything else: config, means, differences, curves, failures, versions
"""

from __future__ import annotations

import io
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.lib
import pyarrow.parquet
from rich.console import Console
from rich.table import Table

from library.errors import DataError
from library.files.atomic import whole_file
from workloads.evaluations.methods import METRICS, NOISY, Role
from workloads.evaluations.statistics import Mean, means_over_scenes
from workloads.evaluations.suites import Buckets
from workloads.journal import Journal


@dataclass(frozen=True)
class Measurement:
    """One image by one method.

    key          names all that determines the numbers
    score        MS-SSIM of the noisy image, as the suite told; None where it did not
    metrics      by the names of `METRICS`; infinite is legal
    parameters   of a classical denoiser, chosen against the truth, by metric
    seconds      that the method took over `megapixels`
    memory       bytes that the worker's process held at most meanwhile, above what it held before; None where unknown
    machine      that it ran on
    """

    key: str
    suite: str
    image: str
    method: str
    scene: str
    camera: str | None
    iso: float | None
    score: float | None
    split: str | None
    metrics: dict[str, float]
    parameters: dict[str, dict[str, float]]
    seconds: float
    megapixels: float
    memory: int | None
    machine: str

    def to_line(self) -> str:
        # JSON has no infinity, which is the PSNR of what equals its truth.
        return json.dumps(asdict(self) | {"metrics": to_json(self.metrics)}, allow_nan=False) + "\n"

    @staticmethod
    def from_line(line: str) -> Measurement:
        """Raises ValueError, KeyError or TypeError for anything else."""
        content = json.loads(line)
        return Measurement(**content | {"metrics": {name: float(v) for name, v in content["metrics"].items()}})


class Results(Journal[Measurement]):
    """See `Journal`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Measurement.from_line)


class MethodFacts(NamedTuple):
    """What is known of a method besides its numbers."""

    label: str
    role: Role
    description: str
    identity: str
    origin: dict[str, Any]
    """Of a bundle: what its manifest says of training, data and versions."""


class Picked(NamedTuple):
    """An image that is shown."""

    image: str
    why: str
    """best, median, worst"""
    gain: float
    """dB of developed PSNR of the suite's first network over the noisy input."""


class Speed(NamedTuple):
    """What a method costs.

    megapixels_per_second  median over the images
    memory                 bytes, the most of any image; None where unknown
    megapixels             that were processed at once, at most
    """

    megapixels_per_second: float
    memory: int | None
    megapixels: float


class Bucket(NamedTuple):
    """A point of a suite's curve over noise."""

    label: str
    num_images: int
    score: float
    """Mean MS-SSIM of the noisy images in it."""
    means: dict[str, dict[str, Mean]]
    """method -> metric"""


@dataclass(frozen=True)
class SuiteResult:
    """What was found on one suite.

    measurements  of methods that were given it, by whichever images they could be measured on
    buckets       of its curve over noise; None for none
    failures      image -> why, where any method failed
    skipped       method -> why it was not given this suite
    """

    name: str
    measurements: Sequence[Measurement]
    buckets: Buckets | None
    failures: Mapping[str, str]
    skipped: Mapping[str, str]
    roles: Mapping[str, Role]

    @cached_property
    def _by_method(self) -> dict[str, dict[str, Measurement]]:
        found: dict[str, dict[str, Measurement]] = {method: {} for method in self.roles}
        for measurement in self.measurements:
            found[measurement.method][measurement.image] = measurement
        return {method: images for method, images in found.items() if images}

    @property
    def methods(self) -> list[str]:
        """With a measurement, in the order of the config: the noisy input, baselines, networks."""
        return list(self._by_method)

    @cached_property
    def images(self) -> list[str]:
        """That every one of these methods was measured on; means are over them."""
        measured = list(self._by_method.values())
        return sorted(set.intersection(*(set(images) for images in measured))) if measured else []

    @cached_property
    def metrics(self) -> list[str]:
        """That all these measurements have."""
        found = [m.metrics for m in self.measurements]
        return [name for name in METRICS if found and all(name in metrics for metrics in found)]

    @property
    def ours(self) -> list[str]:
        return [method for method in self.methods if self.roles[method] == "ours"]

    @property
    def num_scenes(self) -> int:
        return len({self.facts(image).scene for image in self.images})

    def facts(self, image: str) -> Measurement:
        """Any measurement of an image: they agree in all but the method's numbers."""
        return next(images[image] for images in self._by_method.values() if image in images)

    def of(self, method: str, image: str) -> Measurement:
        return self._by_method[method][image]

    def score(self, image: str) -> float:
        """As the suite told; else the developed MS-SSIM of the noisy input as it was measured."""
        told = self.facts(image).score
        return self.of(NOISY, image).metrics["ms_ssim"] if told is None else told

    @cached_property
    def means(self) -> dict[str, dict[str, Mean]]:
        """method -> metric"""
        return self._means(self.images)

    def _means(self, images: Sequence[str]) -> dict[str, dict[str, Mean]]:
        if not images:
            return {}
        scenes = [self.facts(image).scene for image in images]
        rows = [[self.of(m, i).metrics[name] for i in images] for m in self.methods for name in self.metrics]
        found = iter(means_over_scenes(np.array(rows), scenes))
        return {method: {name: next(found) for name in self.metrics} for method in self.methods}

    @cached_property
    def differences(self) -> dict[tuple[str, str], dict[str, Mean]]:
        """(network, other method) -> metric -> mean of the differences image by image, above 0 where the network has
        more; each pair once. Without metrics in which both are infinite somewhere."""
        found: dict[tuple[str, str], dict[str, Mean]] = {}
        pairs = [
            *itertools.combinations(self.ours, 2),
            *((ours, other) for ours in self.ours for other in self.methods if self.roles[other] != "ours"),
        ]
        scenes = [self.facts(image).scene for image in self.images]
        for one, other in pairs if self.images else ():
            found[one, other] = {}
            for name in self.metrics:
                both = np.array([[self.of(m, i).metrics[name] for i in self.images] for m in (one, other)])
                if np.isfinite(both).any(axis=0).all():
                    found[one, other][name] = means_over_scenes(both[:1] - both[1:], scenes)[0]
        return found

    @cached_property
    def curve(self) -> list[Bucket]:
        """Points of quality over noise, from the noisiest on."""
        if self.buckets is None:
            return []
        scores = {image: self.score(image) for image in self.images}
        points = []
        for label, images in self.buckets.members(scores).items():
            mean = math.fsum(scores[image] for image in images) / len(images)
            points.append(Bucket(label, len(images), mean, self._means(images)))
        return sorted(points, key=lambda bucket: bucket.score)

    @cached_property
    def speeds(self) -> dict[str, Speed]:
        """By method; without what takes no time, such as leaving a picture as it is."""
        found = {}
        for method, images in self._by_method.items():
            rates = [m.megapixels / m.seconds for m in images.values() if m.seconds > 1e-4]
            peaks = [m.memory for m in images.values() if m.memory is not None]
            if rates:
                largest = max(m.megapixels for m in images.values())
                found[method] = Speed(statistics.median(rates), max(peaks, default=None), largest)
        return found

    @cached_property
    def picked(self) -> list[Picked]:
        """The images on which the first network gains most, as much as on most, and least over the noisy input."""
        if not self.ours or NOISY not in self.methods:
            return []
        ours = self.ours[0]
        gains = {i: self.of(ours, i).metrics["psnr"] - self.of(NOISY, i).metrics["psnr"] for i in self.images}
        ranked = sorted((i for i in gains if math.isfinite(gains[i])), key=lambda i: (-gains[i], i))
        places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
        shown: dict[int, list[str]] = {}
        for why, place in places.items() if ranked else ():
            shown.setdefault(place, []).append(why)
        return [Picked(ranked[place], " and ".join(whys), gains[ranked[place]]) for place, whys in shown.items()]

    def best_baseline(self, image: str) -> str | None:
        """The classical denoiser with the most developed PSNR on an image."""
        there = [m for m in self.methods if self.roles[m] == "baseline" and image in self._by_method[m]]
        return max(there, key=lambda method: self.of(method, image).metrics["psnr"], default=None)

    def to_json(self) -> dict[str, Any]:
        means = {
            method: {name: to_json(mean._asdict()) for name, mean in m.items()} for method, m in self.means.items()
        }
        return {
            "num_images": len(self.images),
            "num_scenes": self.num_scenes,
            "means": means,
            "differences": [
                {"method": one, "minus": other, **{name: to_json(mean._asdict()) for name, mean in metrics.items()}}
                for (one, other), metrics in self.differences.items()
            ],
            "curve": [
                bucket._asdict()
                | {"means": {m: {n: to_json(v._asdict()) for n, v in row.items()} for m, row in bucket.means.items()}}
                for bucket in self.curve
            ],
            "speeds": {method: speed._asdict() for method, speed in self.speeds.items()},
            "picked": [picked._asdict() for picked in self.picked],
            "buckets": self.buckets and self.buckets.model_dump(mode="json"),
            "failures": dict(self.failures),
            "skipped": dict(self.skipped),
        }


@dataclass(frozen=True)
class Evaluation:
    """What `run` found.

    config    as it was run, resolved
    methods   by name, in the order of the tables
    suites    by name
    data_digest  SHA-256 over all images and truths
    """

    config: dict[str, Any]
    methods: dict[str, MethodFacts]
    suites: dict[str, SuiteResult]
    data_digest: str
    versions: dict[str, str]

    @property
    def output(self) -> Path:
        return Path(self.config["output"])

    @property
    def page(self) -> Path:
        return self.output / "evaluation.html"

    @property
    def exit_code(self) -> int:
        return 1 if any(suite.failures for suite in self.suites.values()) else 0

    @property
    def machines(self) -> list[str]:
        return sorted({m.machine for suite in self.suites.values() for m in suite.measurements})

    def table(self, suite: SuiteResult) -> str:
        """Means of one suite, as text."""
        found = f"{len(suite.images)} images of {suite.num_scenes} scenes"
        table = Table(title=f"{suite.name}: means over {found}, with 95 % intervals over scenes")
        table.add_column("method")
        shown = [name for name in suite.metrics if not name.endswith(".aligned")]
        for name in shown:
            table.add_column(METRICS[name], justify="right")
        for method, means in suite.means.items():
            cells = [f"{format_metric(n, means[n].value)} {format_interval(n, means[n])}".rstrip() for n in shown]
            table.add_row(self.methods[method].label, *cells)
        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def __str__(self) -> str:
        lines = []
        for suite in self.suites.values():
            lines += [self.table(suite)]
            lines += [f"  without {self.methods[m].label}: {reason}" for m, reason in suite.skipped.items()]
            lines += [f"  failed: {image}: {reason}" for image, reason in suite.failures.items()]
        return "\n".join([*lines, str(self.page)])

    def write(self) -> None:
        """`images.parquet` and `evaluation.json`, each whole or not at all; the latter last."""
        rows = [m for suite in self.suites.values() for m in suite.measurements]
        with whole_file(self.output / "images.parquet") as temporary:
            pyarrow.parquet.write_table(_to_table(rows), temporary)
        content = {
            "config": self.config,
            "methods": {name: facts._asdict() for name, facts in self.methods.items()},
            "suites": {name: suite.to_json() for name, suite in self.suites.items()},
            "data_digest": self.data_digest,
            "machines": self.machines,
            "versions": self.versions,
        }
        with whole_file(self.output / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: str | Path) -> Evaluation:
        """Of the folder that `run` wrote, wherever it lies now. DataError when there is none."""
        try:
            content = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
            rows = _from_table(pyarrow.parquet.read_table(Path(folder) / "images.parquet"))
            methods = {name: MethodFacts(**facts) for name, facts in content["methods"].items()}
            suites = {
                name: SuiteResult(
                    name,
                    [row for row in rows if row.suite == name],
                    Buckets.model_validate(suite["buckets"]) if suite["buckets"] is not None else None,
                    suite["failures"],
                    suite["skipped"],
                    {method: facts.role for method, facts in methods.items()},
                )
                for name, suite in content["suites"].items()
            }
            config = content["config"] | {"output": str(folder)}
            return Evaluation(config, methods, suites, content["data_digest"], content["versions"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pyarrow.lib.ArrowException) as error:
            raise DataError(f"{folder}: holds no evaluation ({error}); make one with `workload: evaluate`") from None


def is_evaluation(folder: Path) -> bool:
    """Whether `Evaluation.write` has been there."""
    return (folder / "evaluation.json").exists() and (folder / "images.parquet").exists()


def format_metric(name: str, value: float) -> str:
    """As many digits as mean something: 31.42 dB, 0.9213."""
    if not math.isfinite(value):
        return "∞"
    return f"{value:.4f}" if name.startswith("ms_ssim") else f"{value:.2f}"


def format_interval(name: str, mean: Mean, sign: str = "") -> str:
    """[30.12, 32.60]; nothing where there is none."""
    if mean.low is None or mean.high is None:
        return ""
    digits = 4 if name.startswith("ms_ssim") else 2
    return f"[{mean.low:{sign}.{digits}f}, {mean.high:{sign}.{digits}f}]"


def to_json(values: Mapping[str, float | None]) -> dict[str, float | str | None]:
    """JSON has no infinity: it becomes a text that `float` takes."""
    return {name: v if v is None or math.isfinite(v) else str(v) for name, v in values.items()}


_TEXTS = ("key", "suite", "image", "method", "scene", "camera", "split", "machine")
_FACTS = [field.name for field in fields(Measurement) if field.name not in ("metrics", "parameters")]


def _to_table(rows: Sequence[Measurement]) -> pyarrow.Table:
    """A column a fact and metric; parameters as JSON."""
    columns: dict[str, Any] = {}
    for name in _FACTS:
        kind = pyarrow.string() if name in _TEXTS else pyarrow.int64() if name == "memory" else pyarrow.float64()
        columns[name] = pyarrow.array([getattr(row, name) for row in rows], kind)
    columns["parameters"] = pyarrow.array([json.dumps(row.parameters) for row in rows], pyarrow.string())
    for name in METRICS:
        columns[name] = pyarrow.array([row.metrics.get(name) for row in rows], pyarrow.float64())
    return pyarrow.table(columns)


def _from_table(table: pyarrow.Table) -> list[Measurement]:
    return [
        Measurement(
            **{name: row[name] for name in _FACTS},
            metrics={name: row[name] for name in METRICS if row[name] is not None},
            parameters=json.loads(row["parameters"]),
        )
        for row in table.to_pylist()
    ]
