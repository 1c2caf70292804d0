"""Bundles, ONNX files and classical denoisers on suites of images of known truth: numbers, pictures, one page.

    stillgrain run workloads/configs/evaluate_demo.yaml

<output>/evaluation.html   summary, tables, curves, pictures and provenance on one page that loads nothing
<output>/evaluation.json   config, means with intervals, differences, curves, failures, versions
<output>/images.parquet    metrics of every image by every method
<output>/results.jsonl     a line a measurement; a run that was stopped goes on where it was
<output>/evaluation.yaml   the resolved config: `stillgrain run` of it makes all of this again
<output>/crops/<suite>/    of the images that are shown: noisy, baseline, networks, truth

Networks are given whole images; what is compared is their centre crop.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator

from library.config import Frozen, Location, to_yaml
from library.errors import ConfigError, DataError
from library.files.atomic import whole_file
from library.inference.classical import BASELINES, Baseline, check_available
from library.inference.engine import DEFAULT_TILE, SMALLEST_TILE, Precision
from library.inference.ledger import output_key
from library.inference.onnx_denoiser import check_onnxruntime
from library.sealed import library_versions
from workloads.evaluations.darktable import darktable_version
from workloads.evaluations.methods import (
    NOISY,
    Classical,
    MemoryMeter,
    Method,
    Noisy,
    OnnxFile,
    RawBundle,
    RgbBundle,
    Role,
    Scene,
    judge_picture,
    machine,
    network,
    write_pictures,
)
from workloads.evaluations.page import ABOUT, crops_folder, write_evaluation_page
from workloads.evaluations.results import Evaluation, Measurement, MethodFacts, Results, SuiteResult
from workloads.evaluations.suites import Sample, Suite
from workloads.infer import ActorScaling
from workloads.pool import Outcome, run_pool
from workloads.progress import track
from workloads.ray_session import ray_session

MEASUREMENT_VERSION = "1"
"""Changes whenever the same files and methods would give other numbers."""
_SHOWN_SIDE = 256


class Config(Frozen):
    workload: Literal["evaluate"] = "evaluate"
    bundles: dict[str, Location] = Field(default={})
    """Bundle folders or zips of denoisers, by the names of their rows. One of linear pictures is given raws demosaiced;
    one of raws is left out where a suite holds pictures."""
    onnx: dict[str, Location] = Field(default={})
    """ONNX files with darktable's Bayer contract, by the names of their rows; needs onnxruntime."""
    baselines: tuple[Baseline, ...] = BASELINES
    """Classical denoisers to compare with; also bm3d, where its package is installed."""
    suites: dict[Annotated[str, Field(pattern=r"^\w[\w .+-]*$")], Suite] = Field(min_length=1)
    """What to measure on, by name: {kind: pairs, raws: ..., truth: ...}; also prepared, index, clean and srgb_pairs."""
    output: Location
    """Folder for numbers, pictures and the page."""
    crop: Literal["whole"] | Annotated[int, Field(gt=160, multiple_of=2)] = 256
    """Pixels a side of the centre crop that is compared, or the whole image; networks are always given the whole."""
    precision: Precision = "fp32"
    tile: int = Field(default=DEFAULT_TILE, ge=SMALLEST_TILE)
    """Pixels a side of what a network is given; memory grows with its square, the result of a bundle stays the same."""
    time_limit_s: float = Field(default=1800, gt=0)
    """For one image by one method."""
    scaling: ActorScaling = ActorScaling()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [NOISY, *self.baselines, *self.bundles, *self.onnx]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"'{twice}' names two methods of bundles, onnx and baselines: give each a name of its own")
        return self

    @property
    def uses_darktable(self) -> bool:
        return any(suite.develop == "darktable" for suite in self.suites.values())


class Task(NamedTuple):
    """What is measured in one go."""

    key: str
    suite: str
    sample: Sample
    method: str
    identity: str
    """Of the method as the driver knows it."""


class Sheet(NamedTuple):
    """Pictures of one image that are to be drawn."""

    key: str
    folder: str
    suite: str
    sample: Sample
    shown: tuple[tuple[str, dict[str, float], str], ...]
    """Method, parameters, identity."""


class SuiteData(NamedTuple):
    """A suite as it is on the disk."""

    samples: list[Sample]
    digests: dict[str, tuple[str, str]]
    """name -> SHA-256 of the noisy image and of its truth"""
    methods: list[str]
    """That can be given it."""
    skipped: dict[str, str]
    """method -> why not"""


def run(config: Config) -> Evaluation:
    """Measure what is not measured yet, with actors, and write numbers and page, where all that failed is named.

    raises  BundleError, ConfigError, DataError before any image is compared
    """
    check_available(config.baselines)
    if config.onnx:
        check_onnxruntime()
    if config.uses_darktable:
        darktable_version()
    methods = _methods(config, device="cpu")
    data = {name: _open(name, suite, methods) for name, suite in config.suites.items()}
    output = Path(config.output)
    with whole_file(output / "evaluation.yaml") as temporary:
        temporary.write_text(to_yaml(config), encoding="utf-8")
    tasks, results = list(_tasks(config, data, methods)), Results(output)
    # Image by image, so that an actor opens each once.
    waiting = [task for task in tasks if task.key not in results.by_key]
    errors: dict[tuple[str, str], list[str]] = {}

    def fail(item: Task | Sheet, what: str, reason: str) -> None:
        errors.setdefault((item.suite, item.sample.name), []).append(f"{what}: {reason}")

    with contextlib.ExitStack() as stack:
        if waiting:
            stack.enter_context(ray_session())
        for outcome in track(_pool(config, waiting), total=len(waiting), description="evaluating"):
            if outcome.error is None:
                results.append(outcome.result)
            else:
                fail(outcome.item, outcome.item.method, outcome.error)
        measured = [results.by_key[task.key] for task in tasks if task.key in results.by_key]
        sheets = list(_sheets(config, data, methods, _evaluation(config, data, methods, measured, errors)))
        undrawn = [sheet for sheet in sheets if not _is_drawn(sheet)]
        if undrawn:
            stack.enter_context(ray_session())
        for outcome in track(_pool(config, undrawn), total=len(undrawn), description="drawing"):
            if outcome.error is not None:
                fail(outcome.item, "pictures", outcome.error)
    evaluation = _evaluation(config, data, methods, measured, errors)
    evaluation.write()
    write_evaluation_page(evaluation)
    return evaluation


def _methods(config: Config, *, device: str) -> dict[str, Method]:
    """By name, in the order of the tables."""
    settings: Any = {"tile": config.tile, "precision": config.precision, "device": device}
    threads = config.scaling.cpus_per_worker
    found: list[Method] = [Noisy(), *map(Classical, config.baselines)]
    found += [network(name, path, **settings) for name, path in config.bundles.items()]
    found += [OnnxFile(name, path, tile=config.tile, num_threads=threads) for name, path in config.onnx.items()]
    return {method.name: method for method in found}


def _open(name: str, suite: Any, methods: Mapping[str, Method]) -> SuiteData:
    try:
        samples = suite.samples()
    except DataError as error:
        raise DataError(f"suites.{name}: {error}") from None
    skipped = {
        method.name: "takes mosaics, and this suite holds pictures"
        for method in methods.values()
        if suite.of_pictures and not method.takes_pictures
    }
    digests = {sample.name: (_sha256(sample.noisy), _sha256(sample.truth)) for sample in samples}
    return SuiteData(samples, digests, [method for method in methods if method not in skipped], skipped)


def _tasks(config: Config, data: Mapping[str, SuiteData], methods: Mapping[str, Method]) -> Iterator[Task]:
    for name, suite in data.items():
        for sample in suite.samples:
            for method in suite.methods:
                identity = methods[method].identity
                yield Task(
                    _key(config, name, suite, sample, {"method": method}, identity), name, sample, method, identity
                )


def _key(
    config: Config, name: str, suite: SuiteData, sample: Sample, parameters: Mapping[str, Any], identity: str
) -> str:
    """By all that determines a measurement or a drawing; what merely says where files lie is not among it."""
    noisy, truth = suite.digests[sample.name]
    facts = sample._asdict() | {"noisy": noisy, "truth": truth}
    kind, develop = config.suites[name].kind, config.suites[name].develop
    if develop == "darktable":
        develop = darktable_version()
    known = {"suite": name, "kind": kind, "develop": develop, "crop": config.crop, "sample": facts, **parameters}
    return output_key(noisy, identity, known, MEASUREMENT_VERSION)


def _pool(config: Config, items: Sequence[Task | Sheet]) -> Iterable[Outcome[Any]]:
    """Outcomes as they come; nothing is started for nothing."""
    if not items:
        return ()
    return run_pool(
        Evaluator,
        (config.model_dump(mode="json"),),
        items,
        num_workers=config.scaling.workers,
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=config.scaling.gpus_per_worker,
        time_limit_s=config.time_limit_s,
    )


def _evaluation(
    config: Config,
    data: Mapping[str, SuiteData],
    methods: Mapping[str, Method],
    measured: Sequence[Measurement],
    errors: Mapping[tuple[str, str], Sequence[str]],
) -> Evaluation:
    roles: dict[str, Role] = {name: method.role for name, method in methods.items()}
    suites = {
        name: SuiteResult(
            name,
            [measurement for measurement in measured if measurement.suite == name],
            config.suites[name].buckets,
            {image: _told(reasons) for (of, image), reasons in sorted(errors.items()) if of == name},
            suite.skipped,
            roles,
        )
        for name, suite in data.items()
    }
    facts = {
        name: MethodFacts(method.label, method.role, method.description, method.identity, _origin(method))
        for name, method in methods.items()
    }
    lines = sorted(
        f"{name} {image} {noisy} {truth}" for name, s in data.items() for image, (noisy, truth) in s.digests.items()
    )
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    packages = [
        "scikit-image",
        "scipy",
        "pyarrow",
        *({"bm3d"} & {*config.baselines}),
        *(["onnxruntime"] if config.onnx else []),
    ]
    versions = library_versions() | {name: version(name) for name in packages}
    if config.uses_darktable:
        versions["darktable"] = darktable_version()
    return Evaluation(config.model_dump(mode="json"), facts, suites, digest, versions)


def _told(reasons: Sequence[str]) -> str:
    """What went wrong with an image, once where all methods say the same."""
    texts = dict.fromkeys(reason.partition(": ")[2] for reason in reasons)
    return next(iter(texts)) if len(texts) == 1 and len(reasons) > 1 else "; ".join(reasons)


def _origin(method: Method) -> dict[str, Any]:
    if not isinstance(method, RawBundle | RgbBundle):
        return {}
    manifest = method.bundle.manifest
    keys = ("name", "digest", "step", "num_parameters", "macs_per_pixel", "data_digest", "git_commit", "versions")
    return {key: manifest[key] for key in keys}


def _sheets(
    config: Config, data: Mapping[str, SuiteData], methods: Mapping[str, Method], evaluation: Evaluation
) -> Iterator[Sheet]:
    for name, suite in evaluation.suites.items():
        samples = {sample.name: sample for sample in data[name].samples}
        for number, picked in enumerate(suite.picked):
            baseline = suite.best_baseline(picked.image)
            names = [NOISY, *([baseline] if baseline else []), *suite.ours]
            shown = tuple(
                (method, suite.of(method, picked.image).parameters.get("psnr", {}), methods[method].identity)
                for method in names
            )
            sample = samples[picked.image]
            key = _key(config, name, data[name], sample, {"shown": shown, "side": _SHOWN_SIDE}, "")
            yield Sheet(key, str(crops_folder(evaluation, name, number)), name, sample, shown)


def _is_drawn(sheet: Sheet) -> bool:
    """Whether its pictures are there and would be the same again."""
    try:
        return json.loads(Path(sheet.folder, ABOUT).read_text(encoding="utf-8"))["key"] == sheet.key
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Evaluator:
    """What an actor holds: the methods, and the image it is at."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.config = Config.model_validate(settings)
        threads = self.config.scaling.cpus_per_worker
        torch.set_num_threads(threads)
        device = "cuda" if self.config.scaling.gpus_per_worker else "cpu"
        self.methods = _methods(self.config, device=device)
        self.machine = machine(threads, device)
        self._scene: tuple[str, Sample, Scene] | None = None

    def process(self, item: Task | Sheet) -> Measurement | None:
        """raises  ConfigError for a bundle that was replaced meanwhile, whose numbers would bear the old name."""
        wanted = (
            {item.method: item.identity}
            if isinstance(item, Task)
            else {name: identity for name, _, identity in item.shown}
        )
        if any(self.methods[name].identity != identity for name, identity in wanted.items()):
            raise ConfigError("a bundle was replaced while this ran: let its training end, or copy it, and run again")
        return self.measure(item) if isinstance(item, Task) else self.draw(item)

    def measure(self, task: Task) -> Measurement:
        scene, sample = self._open(task.suite, task.sample), task.sample
        meter = MemoryMeter()
        found = self.methods[task.method].run(scene)
        memory = meter.bytes()
        metrics = dict(found.metrics) | judge_picture(scene, found.picture, self.config.suites[task.suite].develop)
        if unknown := [name for name, value in metrics.items() if math.isnan(value)]:
            raise DataError(f"{sample.noisy}: {unknown[0]} of {task.method} is NaN: its picture holds NaN")
        return Measurement(
            key=task.key,
            suite=task.suite,
            image=sample.name,
            method=task.method,
            scene=sample.scene,
            camera=scene.camera,
            iso=scene.iso,
            score=sample.score,
            split=sample.split,
            metrics=metrics,
            parameters={name: dict(parameters) for name, parameters in found.parameters.items()},
            seconds=found.seconds,
            megapixels=found.megapixels,
            memory=memory,
            machine=self.machine,
        )

    def draw(self, sheet: Sheet) -> None:
        """Write the pictures of one image, and then what they are of."""
        scene = self._open(sheet.suite, sheet.sample)
        height, width = scene.truth.shape[-2:]
        rows, columns = (
            slice((side - min(side, _SHOWN_SIDE)) // 2, (side + min(side, _SHOWN_SIDE)) // 2)
            for side in (height, width)
        )
        pictures = {name: self.methods[name].picture(scene, parameters) for name, parameters, _ in sheet.shown}
        pictures = {name: picture[..., rows, columns] for name, picture in (pictures | {"truth": scene.truth}).items()}
        folder = Path(sheet.folder)
        # By number: a method's name need not be a file's.
        write_pictures(folder, scene, {str(number): picture for number, picture in enumerate(pictures.values())})
        about = {"key": sheet.key, "pictures": {name: f"{number}.png" for number, name in enumerate(pictures)}}
        with whole_file(folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _open(self, suite: str, sample: Sample) -> Scene:
        if self._scene is None or self._scene[:2] != (suite, sample):
            self._scene = None  # or two would be in memory
            asked = self.config.suites[suite]
            crop = None if self.config.crop == "whole" else self.config.crop
            scene = Scene(
                sample,
                of_pictures=asked.of_pictures,
                noise_free=asked.noise_free,
                crop=crop,
                prepared=asked.prepared_folder,
            )
            self._scene = (suite, sample, scene)
        return self._scene[2]
