"""Denoise a whole tree of raw files with actors: resumable, and one bad file harms only itself.

stillgrain run workloads/configs/infer.yaml raws=~/photos output=~/denoised bundle=runs/demo/bundle
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from library.bundle import load_bundle
from library.config import Frozen, Location
from library.inference.archive import Job, Product, Summary, jobs_of_tree, pending, record
from library.inference.denoise import denoise_file
from library.inference.engine import DEFAULT_TILE, SMALLEST_TILE, Engine, Precision
from library.inference.ledger import Ledger
from library.inference.outputs import Format, Written
from workloads.pool import run_pool
from workloads.progress import track
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
    raws: Location
    """Folder of raw files, searched with its subfolders; every node must see it at the same path."""
    output: Location
    """Folder for the results, which mirrors the tree of `raws`, and for the ledger of what is done."""
    bundle: Location
    """Bundle folder or zip of a raw denoiser."""
    formats: tuple[Format, ...] = Field(default=("dng",), min_length=1)
    """dng: demosaiced; cfa-dng: a mosaic; exr: scene-linear; tiff, png: developed. Several are made in one pass."""
    precision: Precision = "fp32"
    tile: int = Field(default=DEFAULT_TILE, ge=SMALLEST_TILE)
    """Packed pixels a side; an actor's memory grows with its square, the result stays the same."""
    time_limit_s: float = Field(default=1800, gt=0)
    """For one file; then its actor is replaced and the file tried once more."""
    max_attempts: int = Field(default=2, gt=0)
    """For a file whose actor dies, hangs or raises something unforeseen."""
    scaling: ActorScaling = ActorScaling()


def run(config: Config) -> Summary:
    """Denoise what is not done yet; returns what it came to. Running it again goes on, or does nothing.

    raises  BundleError, ConfigError, DataError before any file is touched
    """
    start = time.monotonic()
    output = Path(config.output)
    product = Product(load_bundle(config.bundle).digest, config.precision)
    summary = Summary(output)
    with Ledger.open(output) as ledger:
        jobs = list(pending(jobs_of_tree(Path(config.raws), output, config.formats), ledger, product, summary))
        if jobs:
            with ray_session():
                _denoise_all(config, jobs, ledger, product, summary)
    summary.seconds = time.monotonic() - start
    return summary


def _denoise_all(config: Config, jobs: list[Job], ledger: Ledger, product: Product, summary: Summary) -> None:
    by_name = {job.name: job for job in jobs}
    outcomes = run_pool(
        Denoiser,
        (config.model_dump(mode="json"),),
        list(by_name.items()),
        num_workers=config.scaling.workers,
        num_cpus=config.scaling.cpus_per_worker,
        num_gpus=config.scaling.gpus_per_worker,
        time_limit_s=config.time_limit_s,
        max_attempts=config.max_attempts,
    )
    for outcome in track(outcomes, total=len(jobs), description="denoising"):
        job = by_name[outcome.item[0]]
        record(ledger, job, product, summary, outcome.result, outcome.error, outcome.seconds, status=outcome.status)


class Denoiser:
    """What an actor holds: the bundle, verified on its own machine and device before the first file."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = Config.model_validate(config)
        torch.set_num_threads(settings.scaling.cpus_per_worker)
        device = "cuda" if settings.scaling.gpus_per_worker else "cpu"
        bundle = load_bundle(settings.bundle)
        self.engine = Engine(bundle, tile=settings.tile, precision=settings.precision, device=device)

    def process(self, item: tuple[str, Job]) -> list[Written]:
        """Denoise one file into its outputs."""
        job = item[1]
        return denoise_file(job.raw, job.outputs, self.engine)
