"""Rate and distortion of codecs' bundles against what people would otherwise use, on raws of known truth or on display
pictures: one page.

    stillgrain run workloads/configs/rate_distortion.yaml
    stillgrain run workloads/configs/rate_distortion_pictures.yaml

<output>/rate_distortion.html  curves, tables and pictures on one page that loads nothing
<output>/rate_distortion.json  config, digests, BD-rates, targets, versions
<output>/results.jsonl         a line a measurement; a run that was stopped goes on where it was
<output>/curves.csv, curves/   mean curves; the JSON files are as CompressAI's own
<output>/<metric>.png          mean curves
<output>/images/<image>.csv    curves of one raw or picture
<output>/pictures/<image>/     truth, noisy, JPEG XL, denoise-then-JPEG XL and ours, at about equal bytes

Bits are those of files, without metadata and thumbnail, per photosite or pixel of what was coded. The classical codecs
have neither, only what a decoder needs. Distortion is to the clean truth, which a picture is itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from library.bundle import load_bundle
from library.codec_bundle import load_codec
from library.config import Frozen, Location
from library.errors import ConfigError, DataError
from library.files.atomic import whole_file
from library.inference.codec import CodecEngine
from library.inference.engine import DEFAULT_TILE, SMALLEST_TILE, Engine
from library.inference.ledger import output_key
from library.rate_distortion import RateCurve, read_kodak_reference, write_csv
from library.sealed import library_versions
from workloads.infer import ActorScaling
from workloads.pool import Outcome, run_pool
from workloads.progress import track
from workloads.ray_session import ray_session
from workloads.rd_methods import (
    BASELINES,
    DENOISED_JPEG_XL,
    NOISE_KEPT,
    NOISY_JPEG_XL,
    Baseline,
    CodecMethod,
    Coded,
    Method,
    PictureMethod,
    jpeg_xl_near,
    methods_of_pictures,
    methods_of_raws,
)
from workloads.rd_page import against_published, write_curves, write_rd_page
from workloads.rd_results import UNCODED, Comparison, Measurement, Results
from workloads.rd_scenes import PICTURES, RAWS, Kind, PictureScene, RawScene, Scene, find_pictures
from workloads.suite import find_pairs

MEASUREMENT_VERSION = "2"
"""Changes whenever the same files and bundles would give other numbers."""
_PICTURE_SIDE = 320


class Config(Frozen):
    workload: Literal["rate_distortion"] = "rate_distortion"
    codecs: dict[str, Location] = Field(min_length=1)
    """Bundle folders or zips of codecs, by the names of their curves: of raws, or of linear pictures for `pictures`."""
    denoiser: Location | None = None
    """Bundle of a raw denoiser, for raws: what it makes of them goes through the classical codecs and through ours too,
    as people would do it by hand."""
    raws: Location | None = None
    """Folder of noisy raws, searched with its subfolders; every node must see it at the same path."""
    truth: Location | None = None
    """Folder of their truths by the same names: EXR in camera RGB, without noise, of the same pixels."""
    truth_of: dict[str, str] = Field(default={})
    """Raw -> truth, paths below their folders without suffix, where they are not named alike; then only these count."""
    pictures: Location | None = None
    """Folder of display pictures, searched with its subfolders: PNG of 8 or 16 bits. Each is its own truth."""
    output: Location
    """Folder for the page, the numbers and the pictures."""
    qualities: tuple[Annotated[int, Field(ge=0, le=63)], ...] = Field(
        default=(0, 8, 16, 24, 32, 40, 48, 56, 63), min_length=1
    )
    """Of codecs that have more than one rate."""
    baselines: tuple[Baseline, ...] = tuple(BASELINES)
    """Classical codecs, each on all that it can take: noisy picture, denoised picture, mosaic, and without loss; of
    display pictures only those that take pictures."""
    crop: Literal["whole"] | Annotated[int, Field(gt=160, multiple_of=2)] = "whole"
    """Photosites or pixels a side of the centre crop that is coded and compared, or the whole."""
    bpp: float = Field(default=0.2, gt=0)
    """Of what is shown side by side: bits per photosite or pixel, as near as the first codec comes."""
    kodak_reference: Location | None = None
    """JSON of published curves on the Kodak pictures, to be drawn beside what is measured of `pictures`."""
    tile: int = Field(default=DEFAULT_TILE, ge=SMALLEST_TILE)
    """Packed pixels a side, of the denoiser; memory grows with its square, the result stays the same."""
    time_limit_s: float = Field(default=1800, gt=0)
    """For one raw or picture by one method at one setting."""
    scaling: ActorScaling = ActorScaling()

    @model_validator(mode="after")
    def _raws_or_pictures(self) -> Config:
        if (self.raws is None) == (self.pictures is None):
            raise ValueError("give either raws with truth, or pictures, which are their own truth")
        if (self.raws is None) != (self.truth is None):
            raise ValueError("raws and truth belong together: give both, or pictures, which are their own truth")
        for key, given in (("denoiser", self.denoiser), ("truth_of", self.truth_of)):
            if self.pictures is not None and given:
                raise ValueError(f"{key} is for raws, and pictures are given: leave {key} out")
        if self.raws is not None and self.kodak_reference is not None:
            raise ValueError("kodak_reference is drawn beside what is measured of pictures: leave it out for raws")
        return self

    @property
    def kind(self) -> Kind:
        return RAWS if self.pictures is None else PICTURES


class Task(NamedTuple):
    """What is measured in one go."""

    key: str
    image: str
    raw: str
    truth: str
    method: str
    setting: str
    identity: str
    """Of the method as the driver knows it."""


class Sheet(NamedTuple):
    """Pictures of one raw or picture that are to be drawn."""

    key: str
    image: str
    raw: str
    truth: str
    identity: str
    """Of all methods that are shown, as the driver knows them."""


@dataclass(frozen=True)
class RateDistortion:
    """What `run` found, and where it lies."""

    output: Path
    comparison: Comparison

    @property
    def page(self) -> Path:
        return self.output / "rate_distortion.html"

    @property
    def exit_code(self) -> int:
        return 1 if self.comparison.failures or self.comparison.problems else 0

    def table(self) -> str:
        """BD-rates in MS-SSIM and PSNR, as text."""
        found = self.comparison
        table = Table(
            title=f"bytes at equal quality, means over {found.kind.counted(len(found.images))}",
            caption="BD-rate: below 0 the codec takes fewer bytes; over the quality that both curves have",
        )
        for heading in ("codec", "against", "MS-SSIM", "from ... to (dB)", "PSNR", "from ... to (dB)"):
            table.add_column(heading, justify="left" if heading in ("codec", "against") else "right")
        for codec in found.ours:
            for anchor in found.anchors if codec in found.means else ():
                cells = [cell for metric in ("ms_ssim", "psnr") for cell in _cells(found, anchor, codec, metric)]
                table.add_row(codec, anchor, *cells)
        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def __str__(self) -> str:
        found = self.comparison
        return "\n".join(
            [
                self.table(),
                *map(str, found.targets),
                *(f"  without {method}: {reason}" for method, reason in found.problems.items()),
                *(f"  failed: {image}: {reason}" for image, reason in found.failures.items()),
                str(self.page),
            ]
        )


def _cells(found: Comparison, anchor: str, codec: str, metric: str) -> tuple[str, str]:
    mean = found.rate_per_image(anchor, codec, metric, found.images)
    overlap = found.rate_of_means(anchor, codec, metric).overlap
    return (
        "none" if mean.percent is None else f"{mean.percent:+.1f} %",
        "none" if overlap is None else f"{overlap[0]:.2f} ... {overlap[1]:.2f}",
    )


def run(config: Config) -> RateDistortion:
    """Measure what is not measured yet, with actors, and write the page; what cannot be measured is named on it.

    raises  BundleError, ConfigError, DataError before anything is coded
    """
    pairs = _pairs(config)
    kodak = read_kodak_reference(config.kodak_reference) if config.kodak_reference else ()
    methods = _methods(config, device="cpu")
    output, settings = Path(config.output), config.model_dump(mode="json")
    unavailable = {method.name: reason for method in methods if (reason := method.available()) is not None}
    tasks = list(_tasks(config, pairs, [method for method in methods if method.name not in unavailable]))
    sheets = _sheets(config, pairs, methods)
    results, pictures = Results(output), {sheet.image: found for sheet in sheets if (found := _drawn(output, sheet))}
    # Image by image, so that an actor opens each once.
    waiting = [task for task in tasks if task.key not in results.by_key]
    waiting += [sheet for sheet in sheets if sheet.image not in pictures]
    waiting.sort(key=lambda item: item.image)
    errors: dict[tuple[str, str], str] = {}
    with ray_session() if waiting else contextlib.nullcontext():
        for outcome in track(_pool(config, waiting), total=len(waiting), description="coding"):
            image = outcome.item.image
            if isinstance(outcome.item, Sheet):
                if outcome.error is None:
                    pictures[image] = outcome.result
                else:
                    errors.setdefault((image, "pictures"), outcome.error)
            elif outcome.error is None:
                results.append(outcome.result)
            else:
                errors.setdefault((image, outcome.item.method), outcome.error)
    measurements = [results.by_key[task.key] for task in tasks if task.key in results.by_key]
    if not measurements:
        raise DataError(
            f"{config.pictures or config.raws}: nothing could be measured: " + "; ".join(dict.fromkeys(errors.values()))
        )
    descriptions = {method.name: method.description for method in methods}
    # A picture is its own truth, grain and all: who keeps it is judged alike.
    ours = [name for name in descriptions if name.removesuffix(NOISE_KEPT) in config.codecs]
    ours = ours if config.kind is PICTURES else list(config.codecs)
    comparison = Comparison(measurements, descriptions, ours, unavailable, errors, config.kind)
    _write(config, settings, comparison, methods, kodak)
    write_rd_page(output, comparison, pictures, kodak=kodak, config=settings, versions=_versions())
    return RateDistortion(output, comparison)


def _pairs(config: Config) -> dict[str, tuple[Path, Path]]:
    """Name -> what is coded, and its truth."""
    if config.pictures is not None:
        return find_pictures(Path(config.pictures))
    assert config.raws is not None, "validated"
    assert config.truth is not None, "validated"
    return find_pairs(Path(config.raws), Path(config.truth), config.truth_of)


def _methods(config: Config, *, device: str) -> list[Method]:
    codecs = {name: CodecEngine(load_codec(path), device=device) for name, path in config.codecs.items()}
    takes = {4: "raws", 3: "pictures"}
    for name, engine in codecs.items():
        own = takes[engine.model.in_channels]
        if own != f"{config.kind.image}s":
            raise ConfigError(
                f"codecs.{name}: {config.codecs[name]} takes {own}, but {config.kind.image}s are given: give a bundle "
                f"that takes them, or {'raws and truth' if own == 'raws' else own} in their place"
            )
    if config.kind is PICTURES:
        methods = methods_of_pictures(codecs, config.qualities, config.baselines)
    else:
        denoiser = None
        if config.denoiser is not None:
            denoiser = Engine(load_bundle(config.denoiser), tile=config.tile, device=device)
        methods = methods_of_raws(codecs, config.qualities, config.baselines, denoiser)
    names = [method.name for method in methods]
    if twice := {name for name in names if names.count(name) > 1} | {UNCODED} & {*names}:
        raise ConfigError(f"codecs: '{sorted(twice)[0]}' is also the name of another curve: choose another")
    return methods


def _tasks(config: Config, pairs: Mapping[str, tuple[Path, Path]], methods: Sequence[Method]) -> Iterator[Task]:
    wanted = [(UNCODED, name, method.source.identity) for name, method in _uncoded(methods).items()]
    wanted += [(method.name, setting, method.identity) for method in methods for setting in method.settings]
    for image, (raw, truth) in pairs.items():
        content = _sha256(raw)
        parameters = {"image": image, "truth": _sha256(truth), "crop": config.crop}
        for method, setting, identity in wanted:
            of_task = parameters | {"method": method, "setting": setting}
            key = output_key(content, identity, of_task, MEASUREMENT_VERSION)
            yield Task(key, image, str(raw), str(truth), method, setting, identity)


def _sheets(config: Config, pairs: Mapping[str, tuple[Path, Path]], methods: Sequence[Method]) -> list[Sheet]:
    identity, sheets = _shown_identity(config, methods), []
    for image, (raw, truth) in pairs.items():
        parameters = {"image": image, "truth": _sha256(truth), "crop": config.crop, "bpp": config.bpp}
        key = output_key(_sha256(raw), identity, parameters, MEASUREMENT_VERSION)
        sheets.append(Sheet(key, image, str(raw), str(truth), identity))
    return sheets


def _shown_identity(config: Config, methods: Iterable[Method]) -> str:
    shown = (next(iter(config.codecs)), NOISY_JPEG_XL, DENOISED_JPEG_XL)
    return " ".join(method.identity for method in methods if method.name in shown)


def _drawn(output: Path, sheet: Sheet) -> list[dict[str, Any]] | None:
    """What `about.json` says of the pictures, where they are there and would be the same again."""
    try:
        about = json.loads((output / "pictures" / sheet.image / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about["pictures"] if about["key"] == sheet.key else None


def _uncoded(methods: Sequence[Method]) -> dict[str, PictureMethod]:
    """Name -> a method that has the picture as its source, where that is not the truth."""
    found: dict[str, PictureMethod] = {}
    for method in methods:
        if isinstance(method, PictureMethod) and method.source.level is not None:
            found.setdefault(method.source.level, method)
    return found


def _pool(config: Config, items: list[Task | Sheet]) -> Iterable[Outcome[Task | Sheet]]:
    """Outcomes as they come; nothing is started for nothing."""
    if not items:
        return ()
    return run_pool(
        Measurer,
        (config.model_dump(mode="json"),),
        items,
        num_workers=config.scaling.workers,
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=config.scaling.gpus_per_worker,
        time_limit_s=config.time_limit_s,
    )


class Measurer:
    """What an actor holds: bundles, and the image it is at."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.config = Config.model_validate(settings)
        torch.set_num_threads(self.config.scaling.cpus_per_worker)
        device = "cuda" if self.config.scaling.gpus_per_worker else "cpu"
        self.methods = {method.name: method for method in _methods(self.config, device=device)}
        self._scene: tuple[str, str, Scene] | None = None

    def scene(self, image: str, truth: str) -> Scene:
        if self._scene is None or self._scene[:2] != (image, truth):
            self._scene = None  # or two would be in memory
            crop = None if self.config.crop == "whole" else self.config.crop
            if self.config.kind is PICTURES:
                scene: Scene = PictureScene(Path(image), crop)
            else:
                scene = RawScene(Path(image), Path(truth), crop)
            self._scene = (image, truth, scene)
        return self._scene[2]

    def process(self, item: Task | Sheet) -> Measurement | list[dict[str, Any]]:
        """raises  ConfigError for a bundle that was replaced meanwhile, whose numbers would bear the old name."""
        if isinstance(item, Sheet):
            identity = _shown_identity(self.config, self.methods.values())
        elif item.method == UNCODED:
            identity = _uncoded(list(self.methods.values()))[item.setting].source.identity
        else:
            identity = self.methods[item.method].identity
        if identity != item.identity:
            raise ConfigError("a bundle was replaced while this ran: let its training end, or copy it, and run again")
        return self.draw(item) if isinstance(item, Sheet) else self.measure(item)

    def measure(self, task: Task) -> Measurement:
        scene = self.scene(task.raw, task.truth)
        if task.method == UNCODED:
            camera_rgb, seconds = _uncoded(list(self.methods.values()))[task.setting].source(scene)
            coded = Coded(0, camera_rgb, seconds, 0.0)
        else:
            coded = self.methods[task.method].code(scene, task.setting)
        metrics = scene.judge(coded.camera_rgb)
        if unknown := [name for name, value in metrics.items() if math.isnan(value)]:
            raise DataError(f"{task.raw}: {unknown[0]} of {task.method} {task.setting} is NaN: its picture holds NaN")
        return Measurement(
            task.key,
            task.image,
            task.method,
            task.setting,
            coded.num_bytes,
            scene.photosites,
            metrics,
            coded.encoding_time,
            coded.decoding_time,
            scene.camera,
            scene.iso,
        )

    def draw(self, sheet: Sheet) -> list[dict[str, Any]]:
        """Draw one scene's pictures; returns what `about.json` holds of each: file, label, bpp, ms_ssim, psnr."""
        scene, methods = self.scene(sheet.raw, sheet.truth), self.methods
        codec = methods[next(iter(self.config.codecs))]
        assert isinstance(codec, CodecMethod)
        ours = codec.near(scene, self.config.bpp)
        shown: list[tuple[str, str, Coded | None]] = [(f, label, None) for f, (label, _) in scene.uncoded.items()]
        coded = {"ours": ours}
        for file, name in (("jpeg_xl", NOISY_JPEG_XL), ("denoised_jpeg_xl", DENOISED_JPEG_XL)):
            method = methods.get(name)
            if isinstance(method, PictureMethod) and method.available() is None:
                coded[file] = jpeg_xl_near(method, scene, ours.bpp(scene))
                shown.append((file, name[0].upper() + name[1:], coded[file]))
        shown.append(("ours", codec.name, ours))
        whole = {file: picture for file, (_, picture) in scene.uncoded.items()}
        whole |= {file: found.camera_rgb for file, found in coded.items()}
        height, width = scene.truth.shape[-2:]
        side = min(_PICTURE_SIDE, height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pictures = {file: picture[..., top : top + side, left : left + side] for file, picture in whole.items()}
        folder = Path(self.config.output) / "pictures" / sheet.image
        scene.write_crops(folder, pictures)
        about = []
        for file, label, found in shown:
            metrics = scene.judge(whole[file]) if file != "truth" else {}
            about.append(
                {"file": f"{file}.png", "label": label, "bpp": found and found.bpp(scene)}
                | {name: metrics.get(name) for name in ("ms_ssim", "psnr")}
            )
        with whole_file(folder / "about.json") as temporary:
            temporary.write_text(json.dumps({"key": sheet.key, "pictures": about}, indent=1) + "\n", encoding="utf-8")
        return about


# --- files ------------------------------------------------------------------------------------------------------------


def _write(
    config: Config, settings: dict[str, Any], found: Comparison, methods: list[Method], kodak: Sequence[RateCurve]
) -> None:
    """All but the page, each file whole or not at all."""
    output = Path(config.output)
    if found.means:
        labels = found.kind.metrics
        levels = {metric: found.levels(metric) for metric in labels}
        per_site = f"bits of the file per {found.kind.site}"
        write_curves(output, list(found.means.values()), ours=found.ours, labels=labels, levels=levels, rate=per_site)
    for image in found.images:
        write_csv(output / "images" / f"{image}.csv", list(found.curves_of(image).values()))
    content = {
        "config": settings,
        "methods": {method.name: {"description": method.description, "id": method.identity} for method in methods},
        "bd_rates": [
            {
                "codec": codec,
                "anchor": anchor,
                "metric": metric,
                "mean_of_images": found.rate_per_image(anchor, codec, metric, found.images).percent,
                "of_mean_curves": (rate := found.rate_of_means(anchor, codec, metric)).percent,
                "overlap_db": rate.overlap,
                "overlap_share": rate.share,
                "reason": rate.reason,
            }
            for codec in found.ours
            if codec in found.means
            for anchor in found.anchors
            for metric in ("ms_ssim", "psnr", "psnr.linear", "psnr.stabilized")
        ],
        "published": [
            {
                "codec": codec,
                "anchor": anchor,
                "metric": metric,
                "of_mean_curves": rate.percent,
                "overlap_db": rate.overlap,
                "overlap_share": rate.share,
                "reason": rate.reason,
            }
            for metric in ("ms_ssim", "psnr")
            for (anchor, codec), rate in against_published(found, kodak, metric).items()
        ],
        "targets": [
            {
                "codec": t.codec,
                "anchor": t.anchor,
                "wanted_percent": -t.wanted,
                "percent": t.rate.percent,
                "met": t.is_met,
            }
            for t in found.targets
        ],
        "problems": dict(found.problems),
        "failures": dict(found.failures),
        "versions": _versions(),
    }
    with whole_file(output / "rate_distortion.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    return library_versions() | {name: version(name) for name in ("imagecodecs", "OpenEXR", "bjontegaard")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
