"""A bundle against classical denoisers, on raws of known truth: numbers and pictures.

    stillgrain run workloads/configs/evaluate_demo.yaml

<output>/evaluation.json    config, metrics and parameters by image, means, versions
<output>/evaluation.csv     image, method, metrics
<output>/crops/<image>/     noisy.png, classical.png (the best one), denoised.png, truth.png
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor

from library.bundle import load_bundle
from library.config import Frozen, Location
from library.errors import DataError
from library.files.atomic import whole_file
from library.files.raw import read_raw
from library.inference.classical import BASELINES, Baseline, best_classical, check_available
from library.inference.denoise import denoise_raw
from library.inference.engine import DEFAULT_TILE, SMALLEST_TILE, Engine, Precision
from library.metrics import compare_camera_rgb
from library.sealed import library_versions
from workloads.infer import ActorScaling
from workloads.pool import run_pool
from workloads.progress import track
from workloads.ray_session import ray_session
from workloads.suite import centre, color_matrix, demosaiced, find_pairs, read_truth, unsaturated, write_crops

Metrics = dict[str, float]
METRICS = {"psnr": "PSNR, developed (dB)", "ms_ssim": "MS-SSIM, developed", "psnr.linear": "PSNR, linear (dB)"}
"""What `library.metrics.compare_camera_rgb` gives, and what people call it."""
METHODS = {
    "noisy": "noisy (Malvar demosaic)",
    "gaussian": "Gaussian",
    "bilateral": "bilateral",
    "wavelet": "wavelet BayesShrink",
    "nlm": "non-local means",
    "bm3d": "BM3D",
    "denoised": "this bundle",
}


_OPTIONAL = {"bm3d"}
"""Baselines that are packages of their own."""


class Config(Frozen):
    workload: Literal["evaluate"] = "evaluate"
    bundle: Location
    """Bundle folder or zip of a raw denoiser."""
    raws: Location
    """Folder of noisy raws, searched with its subfolders; every node must see it at the same path."""
    truth: Location
    """Folder of their truths by the same names: EXR in camera RGB, without noise, of the same pixels."""
    output: Location
    """Folder for numbers and pictures."""
    baselines: tuple[Baseline, ...] = BASELINES
    """Classical denoisers to compare with; also bm3d, where its package is installed."""
    crop: int = Field(default=256, gt=160, multiple_of=2)
    """Pixels a side of the centre crop that is compared; the network is given the whole raw, the others this crop."""
    precision: Precision = "fp32"
    tile: int = Field(default=DEFAULT_TILE, ge=SMALLEST_TILE)
    """Packed pixels a side; memory grows with its square, the result stays the same."""
    time_limit_s: float = Field(default=1800, gt=0)
    """For one raw."""
    scaling: ActorScaling = ActorScaling()


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`."""

    config: dict[str, Any]
    bundle: dict[str, str]
    """name, digest"""
    images: dict[str, dict[str, Any]]
    """By name: metrics by method, parameters by baseline and metric, the best baseline, camera, iso, crops, seconds."""
    failures: dict[str, str]
    """Name -> reason, of raws that could not be compared."""
    versions: dict[str, str]

    @property
    def means(self) -> dict[str, Metrics]:
        """Over the images, by method."""
        methods = ["noisy", *self.config["baselines"], "denoised"] if self.images else []
        rows = {method: [image["metrics"][method] for image in self.images.values()] for method in methods}
        return {m: {name: math.fsum(r[name] for r in rows[m]) / len(rows[m]) for name in METRICS} for m in methods}

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0

    def table(self) -> str:
        """Means over the images, as text."""
        crop = self.config["crop"]
        table = Table(
            title=f"{self.bundle['name']}: means over {len(self.images)} raws, centre {crop} x {crop} px",
            caption="peak 1 is the sensor's white; classical parameters chosen against the truth, for each metric",
        )
        table.add_column("method")
        for heading in METRICS.values():
            table.add_column(heading, justify="right")
        for method, metrics in self.means.items():
            table.add_row(METHODS[method], *(format_metric(name, metrics[name]) for name in METRICS))
        console = Console(file=io.StringIO(), width=100, color_system=None)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def __str__(self) -> str:
        failed = [f"  failed: {name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join([self.table(), *failed, f"{self.config['output']}: evaluation.json, evaluation.csv, crops"])

    def write(self) -> None:
        """`evaluation.json` and `evaluation.csv`, each whole or not at all."""
        folder = Path(self.config["output"])
        fields = {"config": self.config, "bundle": self.bundle, "means": self.means, "images": self.images}
        text = json.dumps({**fields, "failures": self.failures, "versions": self.versions}, indent=1)
        with whole_file(folder / "evaluation.json") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        with (
            whole_file(folder / "evaluation.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["image", "method", *METRICS])
            for name, image in self.images.items():
                for method, metrics in image["metrics"].items():
                    rows.writerow([name, method, *(metrics[metric] for metric in METRICS)])

    @staticmethod
    def read(folder: str | Path) -> Evaluation:
        """Of the folder that `run` wrote. DataError when there is none."""
        try:
            content = json.loads((Path(folder) / "evaluation.json").read_text(encoding="utf-8"))
            del content["means"]
            return Evaluation(**content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: holds no evaluation ({error}); make one with `workload: evaluate`") from None


def format_metric(name: str, value: float) -> str:
    """As many digits as mean something: 31.42 dB, 0.9213."""
    return f"{value:.4f}" if name == "ms_ssim" else f"{value:.2f}"


def run(config: Config) -> Evaluation:
    """Compare on every raw, with actors, and write the results; a raw that cannot be compared is named in them.

    raises  BundleError, DataError before any raw is read; ConfigError for a baseline that is not installed
    """
    check_available(config.baselines)
    bundle = load_bundle(config.bundle)
    names = {name: str(raw) for name, (raw, _) in find_pairs(Path(config.raws), Path(config.truth)).items()}
    settings = config.model_dump(mode="json")
    images: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    with ray_session():
        outcomes = run_pool(
            Comparer,
            (settings,),
            list(names.items()),
            num_workers=config.scaling.workers,
            num_cpus=config.scaling.cpus_per_worker,
            num_gpus=config.scaling.gpus_per_worker,
            time_limit_s=config.time_limit_s,
        )
        for outcome in track(outcomes, total=len(names), description="evaluating"):
            if outcome.error is None:
                images[outcome.item[0]] = outcome.result
            else:
                failures[outcome.item[0]] = outcome.error
    evaluation = Evaluation(
        settings,
        {"name": bundle.name, "digest": bundle.digest},
        dict(sorted(images.items())),
        dict(sorted(failures.items())),
        library_versions() | {name: version(name) for name in ["scikit-image", *_OPTIONAL & {*config.baselines}]},
    )
    evaluation.write()
    return evaluation


class Comparer:
    """What an actor holds: the bundle."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.config = Config.model_validate(settings)
        torch.set_num_threads(self.config.scaling.cpus_per_worker)
        device = "cuda" if self.config.scaling.gpus_per_worker else "cpu"
        bundle = load_bundle(self.config.bundle)
        self.engine = Engine(bundle, tile=self.config.tile, precision=self.config.precision, device=device)

    def process(self, item: tuple[str, str]) -> dict[str, Any]:
        """Compare one raw, write its crops, and return what `Evaluation.images` holds of it."""
        name, raw_path = item
        raw = read_raw(raw_path)
        matrix = color_matrix(raw)
        truth = self._centre(read_truth(Path(self.config.truth) / f"{name}.exr", raw), raw_path)
        mask = unsaturated(truth, raw)
        noisy = self._centre(demosaiced(raw), raw_path)
        start = time.monotonic()
        denoised = self._centre(torch.from_numpy(denoise_raw(raw, self.engine)).permute(2, 0, 1)[None], raw_path)
        seconds = time.monotonic() - start
        classical = best_classical(noisy, truth, mask, matrix, methods=self.config.baselines)
        best = max(classical, key=lambda method: classical[method].metrics["psnr"], default=None)
        pictures = {"noisy": noisy, "denoised": denoised, "truth": truth}
        if best is not None:
            pictures["classical"] = classical[best].picture
        write_crops(Path(self.config.output) / "crops" / name, raw, truth, pictures)
        return {
            "metrics": {
                "noisy": compare_camera_rgb(noisy, truth, mask, matrix),
                **{method: found.metrics for method, found in classical.items()},
                "denoised": compare_camera_rgb(denoised, truth, mask, matrix),
            },
            "parameters": {method: found.parameters for method, found in classical.items()},
            "best_baseline": best,
            "camera": raw.metadata().camera,
            "iso": raw.iso,
            "megapixels": raw.height * raw.width / 1e6,
            "seconds_denoising": seconds,
            "crops": {label: f"crops/{name}/{label}.png" for label in pictures},
        }

    def _centre(self, picture: Tensor, raw_path: str) -> Tensor:
        """The crop of a (1, C, H, W) picture that all methods are compared on."""
        height, width = picture.shape[-2:]
        rows, columns = centre(height, width, self.config.crop, raw_path)
        return picture[..., rows, columns]
