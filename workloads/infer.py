"""Denoise or encode whole archives of raw files with actors: each exactly once, and one bad file harms only itself.

stillgrain run workloads/configs/infer.yaml raws=~/photos output=~/denoised bundle=runs/demo/bundle
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from library.bundle import Bundle
from library.codec_bundle import CodecBundle, load_any
from library.config import Frozen, Location, to_yaml
from library.errors import ConfigError, DataError
from library.files.dng import Compression
from library.files.isolate import read_raw_isolated
from library.files.noise_profile import NoiseProfiles, read_noise_profiles
from library.files.raw import RawImage
from library.inference.archive import Archive, MakeAll, Product, Summary, denoiser_settings, jobs_of
from library.inference.archive_events import Events
from library.inference.archive_lanes import Lanes
from library.inference.archive_names import ArchiveFormat, Job, check_template
from library.inference.archive_work import Result, denoising, encoding, make_outputs
from library.inference.backends.base import BackendName, Precision
from library.inference.codec import CodecEngine
from library.inference.engine import SMALLEST_TILE, Engine
from library.inference.ledger import Ledger, Status
from library.inference.outputs import Encoding
from library.inference.strength import Strength
from library.inference.tile_size import DEFAULT_MEMORY, available_memory
from library.sealed import library_versions
from workloads.archives.live import shown
from workloads.archives.page import PAGE, note_run, write_archive_page
from workloads.pool import run_pool
from workloads.ray_metrics import counted
from workloads.ray_session import ray_session


class ActorScaling(Frozen):
    """How many actors share the files, and what each gets."""

    workers: int = Field(default=2, gt=0)
    """At most; fewer start while the cluster has no room."""
    cpus_per_worker: int = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    """A fraction lets actors share a GPU; above 0 the network runs on CUDA."""
    files_per_worker: int = Field(default=3, gt=0)
    """In an actor's hands at a time: while the network has one, the next is decoded and the one before is written."""
    memory_gb: float | None = Field(default=None, gt=0)
    """GiB that an actor may come to, to which `tile: auto` keeps. Left out: 4, or less where the actors of a node share
    less."""


class DecodeLimits(Frozen):
    """Of the process in which an actor decodes: a file that goes beyond is refused, and harms no other."""

    seconds: float = Field(default=120, gt=0)
    """Of the clock."""
    memory_gb: float = Field(default=4, gt=0)
    """GiB."""


class Config(Frozen):
    workload: Literal["infer"] = "infer"
    raws: Location | tuple[Location, ...]
    """Folders, searched with their subfolders, raw files, globs, `.txt` lists of one path a line, `.parquet` files with
    a column `path`; one or several. A URI such as s3://bucket/2024 stands for what lies below it. Every node must see
    the files at the same places."""
    output: Location
    """Folder for the results, for the ledger of what is done, and for `events.jsonl`."""
    bundle: Location
    """Bundle folder or zip of a raw denoiser; for sgr of a raw codec."""
    formats: tuple[ArchiveFormat, ...] = Field(default=("dng",), min_length=1)
    """dng: demosaiced; cfa-dng: a mosaic; exr: scene-linear; tiff, png, jpeg, jxl: developed. Several are made in one
    pass. sgr: compressed, alone."""
    name: str | None = None
    """Left out, outputs mirror the tree of the raws. Else a template such as `{year}/{stem}_{iso}.{ext}` of root,
    folder, stem, suffix, ext, iso, make, model, date, time, year, month, day."""
    sidecars: bool = True
    """Copy the `.xmp` files of raws beside their outputs."""
    duplicates: Literal["link", "copy", "make"] = "link"
    """What raws of equal bytes get, under whatever name: one file by several names, copies of it, or each its own."""
    dng_compression: Compression = "none"
    """Of dng and cfa-dng. lossless-jpeg: smaller by a quarter to a half, and slower to write."""
    jpeg_quality: int = Field(default=92, ge=1, le=100)
    """Of jpeg, as libjpeg counts it."""
    jxl_distance: float = Field(default=1.0, gt=0, le=25)
    """Of jxl: 1 is about the least loss that is visible."""
    quality: int | None = Field(default=None, ge=0, le=63)
    """Of sgr: 0 gives the smallest files."""
    bpp: float | None = Field(default=None, gt=0)
    """Of sgr, instead: bits of the file per photosite to aim at."""
    strength: float = Field(default=1.0, ge=0, le=1)
    """0 keeps the noise as it is, 1 removes it."""
    luma: float | None = Field(default=None, ge=0, le=1)
    """The same for the noise of luminance alone; left out, `strength`. Not of sgr."""
    chroma: float | None = Field(default=None, ge=0, le=1)
    """For that of colour."""
    ensemble: bool = False
    """The mean over each raw's eight mirrored and turned forms: a little better, for eight times the work. Not of
    sgr."""
    backend: BackendName = "torch"
    """What computes the network: onnx (ONNX Runtime) and openvino, on the CPU, need the extra [export] on every
    node. Each must reproduce the bundle's golden tiles there before the first file. Not of sgr."""
    noise_profile: Location | None = None
    """What `stillgrain calibrate` wrote: the noise that a bundle of CFA planes is told of, by camera and ISO. Left out,
    a raw's own NoiseProfile is, or an estimate. Not of sgr."""
    precision: Precision = "fp32"
    """bf16 is refused where it would be seen. openvino with bf16 is the fastest where processors have it."""
    tile: Annotated[int, Field(ge=SMALLEST_TILE)] | Literal["auto"] = "auto"
    """Packed pixels a side. auto: as large as an actor's memory allows with torch in fp32, where it changes nothing;
    else one size for all, since there it shows in the last bits."""
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
    decoding: DecodeLimits = DecodeLimits()

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
            of_denoiser = (self.luma, self.chroma, self.noise_profile, self.ensemble or None)
            if any(setting is not None for setting in of_denoiser) or self.backend != "torch":
                raise ValueError(
                    "luma, chroma, ensemble, noise_profile and backend are a denoiser's: leave them out for sgr"
                )
        elif self.quality is not None or self.bpp is not None:
            raise ValueError("quality and bpp are settings of a codec: leave them out, or set formats=[sgr]")
        if "://" in self.output:
            raise ValueError(
                f"output: {self.output} is a URI, and what is done is known by a database and by renaming, which no "
                "object store has: give a folder that all nodes see, and copy it there afterwards, or mount the store"
            )
        return self

    @property
    def shares(self) -> Strength:
        """What a denoiser takes away of the noise."""
        luma, chroma = (self.strength if share is None else share for share in (self.luma, self.chroma))
        return Strength(luma, chroma)

    @property
    def noise(self) -> NoiseProfiles | None:
        """What the noise profile holds. Raises `DataError` where it cannot be read."""
        return None if self.noise_profile is None else read_noise_profiles(self.noise_profile)

    @property
    def encoding(self) -> Encoding:
        """How files are written."""
        return Encoding(self.jpeg_quality, self.jxl_distance, self.dng_compression)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.raws,) if isinstance(self.raws, str) else self.raws


def run(config: Config) -> Summary:
    """Make what is not done yet; returns what it came to. Running it again goes on, or does nothing.

    raises  BundleError, ConfigError, DataError before any file is touched; ConfigError too when the bundle is replaced
            while actors load it; DataError for a disk that takes nothing more
    """
    start = time.monotonic()
    output = Path(config.output)
    bundle = _load(config)
    product = product_of(config, bundle.digest)
    summary = Summary(output, verb="encoded" if "sgr" in config.formats else "denoised")
    # Asked before the ledger makes the folder; with a template again, which reads what is remembered of the raws.
    jobs = jobs_of(config.inputs, output, config.formats, sidecars=config.sidecars) if config.name is None else None
    with Ledger.open(output) as ledger, Events.open(output) as events:
        if jobs is None:
            jobs = jobs_of(
                config.inputs, output, config.formats, ledger=ledger, template=config.name, sidecars=config.sidecars
            )
        link = {"link": True, "copy": False, "make": None}[config.duplicates]
        archive = Archive(ledger, product, summary, events, link=link)
        try:
            archive.run(
                jobs,
                _with_actors(config, product, summary),
                force=config.force,
                retry_failed=config.retry_failed,
                verify=config.verify,
            )
        finally:
            summary.seconds = time.monotonic() - start
            # A run that finds everything done leaves the page as it is.
            if summary.done or len(summary.failures) > summary.remembered or not (output / PAGE).exists():
                note_run(output, _provenance(config, bundle))
                summary.page = _page(output)
    return summary


def _provenance(config: Config, bundle: Bundle | CodecBundle) -> dict[str, Any]:
    """What the page says of how the files were made."""
    return {
        "command": shlex.join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "bundle": f"{bundle.name} sha256:{bundle.digest}",
        "versions": library_versions(),
        "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
        "config": to_yaml(config),
    }


def _page(output: Path) -> Path | None:
    """The page; none on a disk that is full, where what was done counts all the same."""
    try:
        write_archive_page(output)
        return output / PAGE
    except (OSError, DataError):
        return None


def _load(config: Config) -> Bundle | CodecBundle:
    bundle = load_any(config.bundle)
    if isinstance(bundle, CodecBundle) != ("sgr" in config.formats):
        made = "a codec's, which makes sgr" if isinstance(bundle, CodecBundle) else "a denoiser's, which makes no sgr"
        raise ConfigError(f"bundle: {config.bundle} is {made}, but formats are {', '.join(config.formats)}")
    return bundle


def product_of(config: Config, bundle_digest: str) -> Product:
    """What a config makes: all that changes a bit of an output, and nothing else."""
    if "sgr" not in config.formats:
        settings = denoiser_settings(
            config.precision,
            config.tile,
            backend=config.backend,
            strength=config.shares,
            ensemble=config.ensemble,
            noise=config.noise,
        )
        return Product(bundle_digest, settings, config.encoding.settings())
    rate = {"quality": config.quality} if config.quality is not None else {"bpp": config.bpp}
    return Product(bundle_digest, {**rate, "strength": config.strength})


def _with_actors(config: Config, product: Product, summary: Summary) -> MakeAll:
    def make_all(
        jobs: Iterator[Job], total: int, staging: Path
    ) -> Generator[tuple[Job, Result, Status, float], None, None]:
        if (first := next(jobs, None)) is None:  # all of them have the bytes of others: no cluster is needed
            return
        with ray_session():
            outcomes = run_pool(
                Maker,
                (config.model_dump(mode="json"), product, str(staging)),
                chain([first], jobs),
                num_workers=config.scaling.workers,
                num_cpus=config.scaling.cpus_per_worker,
                num_gpus=config.scaling.gpus_per_worker,
                time_limit_s=config.time_limit_s,
                max_attempts=config.max_attempts,
                items_per_worker=config.scaling.files_per_worker,
            )
            outcomes = counted(outcomes, Path(config.output).name, total)
            with closing(shown(outcomes, total=total, summary=summary)) as shown_outcomes:
                for outcome in shown_outcomes:
                    job, result = outcome.item, outcome.result
                    if result is None:
                        result = Result({}, None, f"{job.raw}: {outcome.error}")
                    yield job, result, "quarantined" if outcome.status == "quarantined" else "failed", outcome.seconds

    return make_all


def _replaced(config: Config, bundle_digest: str, product: Product) -> ConfigError:
    remedy = (
        "run again, and what is there is made anew with it; or put the old one back first, and the same command goes on"
    )
    if bundle_digest == product.bundle_digest:
        return ConfigError(f"noise_profile: {config.noise_profile} was replaced while the run went on: {remedy}")
    now, before = bundle_digest[:12], product.bundle_digest[:12]
    return ConfigError(
        f"bundle: {config.bundle} was replaced while the run went on (it is sha256:{now} now, and was "
        f"sha256:{before}): {remedy}"
    )


_SHARE_OF_PICTURES = 0.375
"""Of an actor's memory, for the pictures in its hands; a larger one goes through alone. The rest is the network's, and
one decoded raw's."""


def _memory_of(scaling: ActorScaling) -> int:
    """Bytes that an actor may come to, so that as many as a node has room for fit beside each other."""
    if scaling.memory_gb is not None:
        return int(scaling.memory_gb * 2**30)
    neighbours = min(scaling.workers, max(1, (os.cpu_count() or 1) // scaling.cpus_per_worker))
    return min(DEFAULT_MEMORY, available_memory() // neighbours)


class Maker:
    """What an actor holds: the bundle, verified on its own machine and device before the first file.

    product  what the run books its outputs as
    raises   ConfigError where the bundle, or the noise profile, has become another since the run began
    """

    def __init__(self, config: dict[str, Any], product: Product, staging: str) -> None:
        settings = Config.model_validate(config)
        torch.set_num_threads(settings.scaling.cpus_per_worker)
        device = "cuda" if settings.scaling.gpus_per_worker else "cpu"
        bundle = _load(settings)

        def read(path: Path) -> RawImage:
            limits = settings.decoding
            return read_raw_isolated(path, memory_bytes=int(limits.memory_gb * 2**30), seconds=limits.seconds)

        if isinstance(bundle, CodecBundle):
            engine = CodecEngine(bundle, device=device)
            self.make = encoding(
                engine, quality=settings.quality, bpp=settings.bpp, strength=settings.strength, read=read
            )
        else:
            engine = Engine(
                bundle,
                tile=settings.tile,
                precision=settings.precision,
                device=device,
                backend=settings.backend,
                strength=settings.shares,
                ensemble=settings.ensemble,
                noise=settings.noise,
                memory=int((1 - _SHARE_OF_PICTURES) * _memory_of(settings.scaling)),
            )
            self.make = denoising(engine, read=read, encoding=settings.encoding)
        if product_of(settings, bundle.digest) != product:  # asked when all of it is read
            raise _replaced(settings, bundle.digest, product)
        self.staging = Path(staging)
        self.lanes = Lanes(_SHARE_OF_PICTURES * _memory_of(settings.scaling))

    def process(self, job: Job) -> Result:
        """Make the outputs of one file. Several threads of the actor do so at once."""
        return make_outputs(job, self.make, self.staging, self.lanes)
