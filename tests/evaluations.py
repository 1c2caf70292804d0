"""A small evaluation as it lies on the disk, without anything having been measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from library.files.picture import write_png
from workloads.evaluations.page import ABOUT, crops_folder
from workloads.evaluations.results import Evaluation, Measurement, MethodFacts, SuiteResult
from workloads.evaluations.suites import Buckets

IMAGES = ("more/<lamp>_0", "street_0")
PSNR = {"noisy": 20.0, "nlm": 26.0, "first": 27.25, "second": 25.0}
MS_SSIM = {"noisy": 0.7, "nlm": 0.91, "first": 0.9, "second": 0.88}
LINEAR = {"noisy": 30.0, "nlm": 35.5, "first": 35.0, "second": 33.0}


def write_evaluation(folder: Path) -> Evaluation:
    """Two networks, one classical denoiser and the noisy input on two images of two scenes, and on none of another
    suite, which is `broken`."""
    methods = {
        "noisy": MethodFacts("input", "noisy", "Malvar demosaic", "malvar", {}),
        "nlm": MethodFacts("non-local means", "baseline", "stabilised", "nlm 1", {}),
        "first": MethodFacts("first", "ours", "a bundle", "d1", _origin("first")),
        "second": MethodFacts("second", "ours", "a bundle", "d2", _origin("second")),
    }
    measurements = [_measurement(image, method, number) for number, image in enumerate(IMAGES) for method in methods]
    roles = {name: facts.role for name, facts in methods.items()}
    failures = {"broken_0": "is truncated"}
    suites = {
        "held out": SuiteResult(
            "held out", measurements, Buckets(at_most=(0.72,), at_least=(0.0,)), failures, {}, roles
        ),
        "pictures": SuiteResult("pictures", [], None, {}, {"first": "takes mosaics"}, roles),
    }
    evaluation = Evaluation({"output": str(folder), "crop": 256}, methods, suites, "0" * 64, {"torch": "2"})
    evaluation.write()
    for number in range(2):
        crops = crops_folder(evaluation, "held out", number)
        files = {name: f"{place}.png" for place, name in enumerate([*methods, "truth"])}
        for seed, file in enumerate(files.values()):
            pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3)).astype(np.uint8)
            write_png(crops / file, pixels)
        (crops / ABOUT).write_text(json.dumps({"key": "k", "pictures": files}))
    return evaluation


def _origin(name: str) -> dict[str, object]:
    facts = {"name": name, "digest": "ab" * 32, "step": 40, "num_parameters": 1200, "macs_per_pixel": 30.5}
    return facts | {"data_digest": "cd", "git_commit": None, "versions": {"torch": "2"}}


def _measurement(image: str, method: str, number: int) -> Measurement:
    # Between the images only the distance to the noisy input differs.
    shift = 0.25 if method == "noisy" else 0.0
    psnr = PSNR[method] + (shift if number else -shift)
    score = MS_SSIM[method] + (0.05 if number else -0.05)
    metrics = {"psnr": psnr, "ms_ssim": score, "psnr.linear": LINEAR[method]}
    return Measurement(
        key=f"{image} {method}",
        suite="held out",
        image=image,
        method=method,
        scene=image,
        camera="Maker Model",
        iso=3200.0,
        score=None,
        split=None,
        metrics=metrics | {f"{name}.aligned": value for name, value in metrics.items()},
        parameters={},
        seconds=2.25,
        megapixels=1.5,
        memory=3 * 2**20,
        machine="a machine, 1 thread",
    )
