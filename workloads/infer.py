"""Denoise or encode whole archives of raw files with actors: each exactly once, and one bad file harms only itself.

stillgrain run workloads/configs/infer.yaml raws=~/photos output=~/denoised bundle=runs/demo/bundle
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from library.bundle import Bundle
from library.codec_bundle import CodecBundle, load_any
from library.config import Frozen, Location
from library.errors import ConfigError
from library.inference.archive import Archive, MakeAll, Product, Summary, denoiser_settings, jobs_of
from library.inference.archive_events import Events
from library.inference.archive_names import ArchiveFormat, Job, check_template
from library.inference.archive_work import Result, denoising, encoding, make_outputs
from library.inference.codec import CodecEngine
from library.inference.engine import DEFAULT_TILE, SMALLEST_TILE, Engine, Precision
from library.inference.ledger import Ledger, Status
from workloads.archives.live import shown
from workloads.pool import run_pool
from workloads.ray_session import ray_session


class ActorScaling(Frozen):
    """How many actors share the files, and what each gets."""

    workers: int = Field(default=2, gt=0)
    """At most; fewer start while the cluster has no room."""
    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    """A fraction lets actors share a GPU; above 0 the network runs on CUDA."""


class Config(Frozen):
    workload: Literal["infer"] = "infer"
    raws: Location | tuple[Location, ...]
    """Folders, searched with their subfolders, raw files, globs, `.txt` lists of one path a line, `.parquet` files with
    a column `path`; one or several. Every node must see the files at the same paths."""
    output: Location
    """Folder for the results, for the ledger of what is done, and for `events.jsonl`."""
    bundle: Location
    """Bundle folder or zip of a raw denoiser; for sgr of a raw codec."""
    formats: tuple[ArchiveFormat, ...] = Field(default=("dng",), min_length=1)
    """dng: demosaiced; cfa-dng: a mosaic; exr: scene-linear; tiff, png: developed. Several are made in one pass. sgr:
    compressed, alone."""
    name: str | None = None
    """Left out, outputs mirror the tree of the raws. Else a template such as `{year}/{stem}_{iso}.{ext}` of root,
    folder, stem, suffix, ext, iso, make, model, date, time, year, month, day."""
    sidecars: bool = True
    """Copy the `.xmp` files of raws beside their outputs."""
    duplicates: Literal["link", "copy", "make"] = "link"
    """What raws of equal bytes get, under whatever name: one file by several names, copies of it, or each its own."""
    quality: int | None = Field(default=None, ge=0, le=63)
    """Of sgr: 0 gives the smallest files."""
    bpp: float | None = Field(default=None, gt=0)
    """Of sgr, instead: bits of the file per photosite to aim at."""
    strength: float = Field(default=1.0, ge=0, le=1)
    """Of sgr: 0 keeps the noise as it is, 1 removes it."""
    precision: Precision = "fp32"
    tile: int = Field(default=DEFAULT_TILE, ge=SMALLEST_TILE)
    """Packed pixels a side; an actor's memory grows with its square, the result stays the same in fp32."""
    force: bool = False
    """Make everything anew."""
    retry_failed: bool = False
    """Try raws again that failed by their own fault. What failed by a full disk, a kill and the like is in any case."""
    verify: bool = False
    """Read every output that is there, and make anew what is not what was written."""
    time_limit_s: float = Field(default=1800, gt=0)
    """For one file; then its actor is replaced and the file tried once more."""
    max_attempts: int = Field(default=2, gt=0)
    """For a file whose actor dies, hangs or raises something unforeseen."""
    scaling: ActorScaling = ActorScaling()

    @field_validator("name")
    @classmethod
    def _can_be_filled(cls, name: str | None) -> str | None:
        if name is not None:
            check_template(name)
        return name

    @model_validator(mode="after")
    def _formats_fit(self) -> Config:
        if "sgr" in self.formats:
            if self.formats != ("sgr",):
                raise ValueError("formats: sgr is made by a codec and the others by a denoiser; run them apart")
            if (self.quality is None) == (self.bpp is None):
                raise ValueError("give either quality (0 to 63) or bpp, the bits per photosite to aim at, for sgr")
        elif self.quality is not None or self.bpp is not None or self.strength != 1:
            raise ValueError("quality, bpp and strength are settings of a codec: leave them out, or set formats=[sgr]")
        if remote := next((place for place in (*self.inputs, self.output) if "://" in place), None):
            raise ValueError(f"{remote} is a URI, and an archive lies in folders that all nodes see: mount it")
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.raws,) if isinstance(self.raws, str) else self.raws


def run(config: Config) -> Summary:
    """Make what is not done yet; returns what it came to. Running it again goes on, or does nothing.

    raises  BundleError, ConfigError, DataError before any file is touched
    """
    start = time.monotonic()
    output = Path(config.output)
    product = product_of(config, _load(config).digest)
    summary = Summary(output, verb="encoded" if "sgr" in config.formats else "denoised")
    # Asked before the ledger makes the folder; with a template again, which reads what is remembered of the raws.
    jobs = jobs_of(config.inputs, output, config.formats, sidecars=config.sidecars) if config.name is None else None
    with Ledger.open(output) as ledger, Events.open(output) as events:
        if jobs is None:
            jobs = jobs_of(
                config.inputs, output, config.formats, ledger=ledger, template=config.name, sidecars=config.sidecars
            )
        link = {"link": True, "copy": False, "make": None}[config.duplicates]
        Archive(ledger, product, summary, events, link=link).run(
            jobs,
            _with_actors(config, summary),
            force=config.force,
            retry_failed=config.retry_failed,
            verify=config.verify,
        )
    summary.seconds = time.monotonic() - start
    return summary


def _load(config: Config) -> Bundle | CodecBundle:
    bundle = load_any(config.bundle)
    if isinstance(bundle, CodecBundle) != ("sgr" in config.formats):
        made = "a codec's, which makes sgr" if isinstance(bundle, CodecBundle) else "a denoiser's, which makes no sgr"
        raise ConfigError(f"bundle: {config.bundle} is {made}, but formats are {', '.join(config.formats)}")
    return bundle


def product_of(config: Config, bundle_digest: str) -> Product:
    """What a config makes: all that changes a bit of an output, and nothing else."""
    if "sgr" not in config.formats:
        return Product(bundle_digest, denoiser_settings(config.precision, config.tile))
    rate = {"quality": config.quality} if config.quality is not None else {"bpp": config.bpp}
    return Product(bundle_digest, {**rate, "strength": config.strength})


def _with_actors(config: Config, summary: Summary) -> MakeAll:
    def make_all(
        jobs: Iterator[Job], total: int, staging: Path
    ) -> Generator[tuple[Job, Result, Status, float], None, None]:
        if (first := next(jobs, None)) is None:  # all of them have the bytes of others: no cluster is needed
            return
        with ray_session():
            outcomes = run_pool(
                Maker,
                (config.model_dump(mode="json"), str(staging)),
                chain([first], jobs),
                num_workers=config.scaling.workers,
                num_cpus=config.scaling.cpus_per_worker,
                num_gpus=config.scaling.gpus_per_worker,
                time_limit_s=config.time_limit_s,
                max_attempts=config.max_attempts,
            )
            with closing(shown(outcomes, total=total, summary=summary)) as shown_outcomes:
                for outcome in shown_outcomes:
                    job, result = outcome.item, outcome.result
                    if result is None:
                        result = Result({}, None, f"{job.raw}: {outcome.error}")
                    yield job, result, "quarantined" if outcome.status == "quarantined" else "failed", outcome.seconds

    return make_all


class Maker:
    """What an actor holds: the bundle, verified on its own machine and device before the first file."""

    def __init__(self, config: dict[str, Any], staging: str) -> None:
        settings = Config.model_validate(config)
        torch.set_num_threads(settings.scaling.cpus_per_worker)
        device = "cuda" if settings.scaling.gpus_per_worker else "cpu"
        bundle = _load(settings)
        if isinstance(bundle, CodecBundle):
            engine = CodecEngine(bundle, device=device)
            self.make = encoding(engine, quality=settings.quality, bpp=settings.bpp, strength=settings.strength)
        else:
            self.make = denoising(Engine(bundle, tile=settings.tile, precision=settings.precision, device=device))
        self.staging = Path(staging)

    def process(self, job: Job) -> Result:
        """Make the outputs of one file."""
        return make_outputs(job, self.make, self.staging)
