"""The whole way in one test: scenes -> store -> training -> bundle -> another process -> a denoised raw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from library.bundle import load_bundle
from library.codec_bundle import pack_bundle
from library.files.exr import read_exr
from library.files.raw import read_raw
from library.inference.denoise import denoise_raw
from library.inference.engine import Engine
from workloads.run import read_config, run

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "workloads" / "configs"


@pytest.mark.slow
def test_from_scenes_to_a_denoised_raw_in_another_process(scenes: Path, tmp_path: Path) -> None:
    data = [f"storage={tmp_path / 'runs'}", f"dataset.scenes={scenes}", "dataset.held_out=[scene0, scene3]"]
    data += ["dataset.crop=48", "dataset.validation_crop=168"]
    suite = run(read_config(CONFIGS / "simulate_demo.yaml", [*data, f"output={tmp_path / 'suite'}", "seed=1"]))
    training = ["name=journey", "steps=60", "log_every=10", "validate_every=30", "checkpoint_every=30"]
    training += ["model={kind: nafnet, width: 8}", "batch_size=4"]
    result = run(read_config(CONFIGS / "denoise_demo.yaml", [*data, *training, "scaling.workers=0"]))

    pack_bundle(result.bundle, tmp_path / "elsewhere" / "model.zip")
    raw_path = sorted(suite.raws.rglob("*.dng"))[0]
    command = [sys.executable, "-m", "stillgrain", "denoise", str(raw_path), "-o", str(tmp_path / "out")]
    command += ["--bundle", str(tmp_path / "elsewhere" / "model.zip"), "--format", "cfa-dng"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)

    # What came back from the other process is what this one computes, to the step of the file.
    raw, denoised = read_raw(raw_path), read_raw(tmp_path / "out" / raw_path.name)
    here = denoise_raw(raw, Engine(load_bundle(result.bundle)))
    rows, columns = np.indices(raw.mosaic.shape)
    channel = np.array(["RGB".index(letter) for letter in raw.cfa]).reshape(2, 2)[rows % 2, columns % 2]
    sampled = np.take_along_axis(here, channel[..., None], axis=2)[..., 0]
    there = (denoised.mosaic - denoised.black_level[0, 0]) / (denoised.white_level - denoised.black_level[0, 0])
    step = 1 / (denoised.white_level - denoised.black_level[0, 0])  # of a file that is dithered and rounded
    np.testing.assert_allclose(there, sampled.clip(-denoised.black_level[0, 0] * step, 1), atol=1.01 * step)

    # And it is nearer to the truth than the raw was, even after sixty steps.
    truth = read_exr(suite.truth / raw_path.relative_to(suite.raws).with_suffix(".exr")).rgb
    true_mosaic = np.take_along_axis(truth, channel[..., None], axis=2)[..., 0]
    noisy = (raw.mosaic - raw.black_level[0, 0]) / (raw.white_level - raw.black_level[0, 0])
    assert np.mean((there - true_mosaic) ** 2) < 0.7 * np.mean((noisy - true_mosaic) ** 2)
