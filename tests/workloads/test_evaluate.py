from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from library.bundle import write_bundle
from library.errors import BundleError, ConfigError, DataError
from library.files.exr import read_exr, write_exr
from library.files.picture import write_png
from library.files.raw import read_raw
from library.inference.classical import best_classical
from library.metrics import compare_aligned, compare_camera_rgb
from library.models import demosaic, nafnet
from library.ops.cfa import sample_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.levels import normalize_levels
from workloads import simulate
from workloads.evaluate import Config, Evaluator, Task, run
from workloads.evaluations.methods import MemoryMeter, judge
from workloads.evaluations.page import ABOUT, crops_folder
from workloads.evaluations.results import Evaluation, Measurement

CROP, HEIGHT, WIDTH = 162, 164, 170
GOOD = ["a_0", "more/b_0"]
PLAIN = ["psnr", "ms_ssim", "psnr.linear"]
ALIGNED = [f"{name}.aligned" for name in PLAIN]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As in the actors; and threads on tiny pictures take seconds to wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of an untrained NAFNet, which is the bilinear demosaic, and of the identity of linear pictures; a suite
    of three raws, one of them cut short; a pair of display pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    for name, edge in (("a", 0.3), ("more/b", 0.6), ("broken", 0.5), ("to_train_on", 0.5)):
        rgb = np.stack([0.1 + 0.5 * (columns > edge), 0.2 + 0.3 * rows, 0.4 - 0.2 * columns], axis=-1)
        write_exr(folder / "scenes" / f"{name}.exr", rgb, chromaticities="srgb")
    dataset = {"kind": "synthetic", "scenes": str(folder / "scenes"), "crop": 16, "validation_crop": 162}
    dataset["held_out"] = ["a", "more/b", "broken"]
    paths = {"output": str(folder / "suite"), "storage": str(folder)}
    suite = simulate.run(simulate.Config.model_validate({"dataset": dataset, **paths}))
    whole = (suite.raws / "broken_0.dng").read_bytes()
    (suite.raws / "broken_0.dng").write_bytes(whole[: len(whole) // 2])
    clean = np.stack([40 + 100 * rows, 60 + 80 * columns, 90 + 0 * rows], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, clean.shape)
    for end, picture in (("clean", clean), ("noisy", clean + noise)):
        write_png(folder / "display" / f"x_{end}.png", picture.round().clip(0, 255).astype(np.uint8))
    facts: dict[str, Any] = {"training": {}, "data_digest": "none", "metrics": {}, "step": 0}
    model = nafnet.Config(width=4, encoder_blocks=(1,), middle_blocks=0, decoder_blocks=(1,)).build().eval()
    write_bundle(folder / "bundle", model, name="untrained", **facts)
    write_bundle(folder / "rgb", demosaic.Config(in_channels=3, method="identity").build(), name="identity", **facts)
    return folder


def pairs(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "pairs", "raws": str(folder / "suite/raws"), "truth": str(folder / "suite/truth")} | changes


def config(folder: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "bundles": {name: str(folder / path) for name, path in (("one", "bundle"), ("same", "bundle"), ("rgb", "rgb"))},
        "baselines": ["gaussian"],
        "suites": {
            "held": pairs(
                folder, develop="ours", names=r"(?P<scene>.+)_\d+", buckets={"at_most": [], "at_least": [0.0]}
            ),
            "clean": {"kind": "clean", "of": pairs(folder)},
            "display": {"kind": "srgb_pairs", "folder": str(folder / "display")},
        },
        "output": str(folder / "evaluation"),
        "crop": CROP,
        "scaling": {"workers": 1},
    }
    return Config.model_validate(settings | changes)


@pytest.fixture(scope="module")
def evaluation(folder: Path, ray_cluster: str) -> Evaluation:
    return run(config(folder))


def centre(picture: torch.Tensor) -> torch.Tensor:
    """(1, C, CROP, CROP) of a (C, H, W) picture."""
    top, left = (HEIGHT - CROP) // 2, (WIDTH - CROP) // 2
    return picture[None, :, top : top + CROP, left : left + CROP]


def opened(folder: Path, name: str) -> tuple[torch.Tensor, str, torch.Tensor, torch.Tensor]:
    """A raw's normalised mosaic and its CFA, its truth (3, H, W), its colour matrix."""
    raw = read_raw(folder / "suite/raws" / f"{name}.dng")
    truth = torch.from_numpy(read_exr(folder / "suite/truth" / f"{name}.exr").rgb).permute(2, 0, 1)
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    assert raw.xyz_to_camera is not None
    return mosaic, raw.cfa, truth, torch.from_numpy(raw.xyz_to_camera)[None]


def test_every_method_has_finite_numbers_for_every_image(evaluation: Evaluation):
    held, clean, display = evaluation.suites.values()
    everything = ["noisy", "gaussian", "one", "same", "rgb"]
    assert (held.images, held.methods) == (GOOD, everything)
    assert held.metrics == [*PLAIN, *ALIGNED, "psnr.picture", "ms_ssim.picture"]
    assert (clean.images, clean.methods, clean.metrics) == (GOOD, everything, [*PLAIN, *ALIGNED])
    assert (display.images, display.methods) == (["x"], ["noisy", "gaussian", "rgb"])
    for suite in (held, clean, display):
        assert all(math.isfinite(value) for m in suite.measurements for value in m.metrics.values())
        assert all(m.seconds >= 0 and m.megapixels > 0 for m in suite.measurements)


@pytest.mark.parametrize("name", GOOD)
def test_noisy_and_denoised_rows_equal_a_direct_computation(folder: Path, evaluation: Evaluation, name: str):
    """The untrained network is the bilinear demosaic, whichever CFA phase the raw has; the other does nothing."""
    mosaic, cfa, truth, matrix = opened(folder, name)
    mask = (centre(truth) < 1).all(dim=1, keepdim=True).float()
    held = evaluation.suites["held"]
    noisy = judge(centre(demosaic_malvar(mosaic, cfa=cfa)), centre(truth), mask, matrix)
    denoised = judge(centre(demosaic_bilinear(mosaic, cfa=cfa)), centre(truth), mask, matrix)
    for method, direct in (("noisy", noisy), ("one", denoised), ("rgb", noisy)):
        found = {metric: held.of(method, name).metrics[metric] for metric in direct}
        assert found == pytest.approx(direct, rel=1e-4)


def test_a_clean_raw_is_the_truth_as_its_sensor_samples_it(folder: Path, evaluation: Evaluation):
    _, cfa, truth, matrix = opened(folder, "a_0")
    picture = demosaic_bilinear(sample_cfa(truth, cfa), cfa=cfa)
    direct = compare_camera_rgb(centre(picture), centre(truth), torch.ones(1, 1, CROP, CROP), matrix)
    found = evaluation.suites["clean"].of("one", "a_0").metrics
    assert {name: found[name] for name in direct} == pytest.approx(direct, rel=1e-3)
    assert found["psnr"] > evaluation.suites["held"].of("one", "a_0").metrics["psnr"] + 3


def test_display_pictures_are_judged_as_they_are_stored(folder: Path, evaluation: Evaluation):
    both = [np.asarray(Image.open(folder / f"display/x_{end}.png")) / 255 for end in ("noisy", "clean")]
    top, left = (HEIGHT - CROP) // 2, (WIDTH - CROP) // 2
    noisy, clean = (picture[top : top + CROP, left : left + CROP] for picture in both)
    psnr = -10 * math.log10(((noisy - clean) ** 2).mean())
    display = evaluation.suites["display"]
    for method in ("noisy", "rgb"):
        assert display.of(method, "x").metrics["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert set(display.skipped) == {"one", "same"}


def test_classical_rows_are_the_best_that_the_library_finds(folder: Path, evaluation: Evaluation):
    mosaic, cfa, truth, matrix = opened(folder, "a_0")
    arguments = (centre(demosaic_malvar(mosaic, cfa=cfa)), centre(truth), torch.ones(1, 1, CROP, CROP), matrix)
    best = best_classical(*arguments, methods=["gaussian"], compare=judge)["gaussian"]
    found = evaluation.suites["held"].of("gaussian", "a_0")
    assert {name: found.metrics[name] for name in best.metrics} == best.metrics
    assert found.parameters == best.parameters
    aligned = compare_aligned(best.picture, *arguments[1:])
    assert all(found.metrics[name] >= value for name, value in aligned.items())


def test_a_damaged_raw_is_named_with_its_reason_and_harms_no_other(evaluation: Evaluation):
    for suite in ("held", "clean"):
        assert list(evaluation.suites[suite].failures) == ["broken_0"]
        assert "truncated or damaged" in evaluation.suites[suite].failures["broken_0"]
    assert evaluation.exit_code == 1
    assert "failed: broken_0: " in str(evaluation)


def test_means_are_over_the_images_and_lie_in_their_intervals(evaluation: Evaluation):
    held = evaluation.suites["held"]
    assert held.num_scenes == 2
    for method, means in held.means.items():
        for name, mean in means.items():
            assert mean.value == pytest.approx(np.mean([held.of(method, image).metrics[name] for image in GOOD]))
            assert mean.low is not None
            assert mean.high is not None
            assert mean.low <= mean.value <= mean.high
    assert held.curve[0].means["one"] == held.means["one"]


def test_a_bundle_does_not_differ_from_itself(evaluation: Evaluation):
    for suite in ("held", "clean"):
        for mean in evaluation.suites[suite].differences["one", "same"].values():
            assert mean == (0, 0, 0)


def test_the_files_say_what_was_returned(folder: Path, evaluation: Evaluation):
    read = Evaluation.read(folder / "evaluation")
    assert read == evaluation
    assert read.suites["held"].differences == evaluation.suites["held"].differences
    table = pyarrow.parquet.read_table(folder / "evaluation/images.parquet").to_pylist()
    rows = [
        (m.suite, m.image, m.method, m.metrics["ms_ssim.aligned"]) for s in read.suites.values() for m in s.measurements
    ]
    assert [(r["suite"], r["image"], r["method"], r["ms_ssim.aligned"]) for r in table] == rows
    content = json.loads((folder / "evaluation/evaluation.json").read_text())
    assert content["suites"]["held"]["means"]["one"]["psnr"]["value"] == read.suites["held"].means["one"]["psnr"].value
    assert evaluation.page.exists()


def test_pictures_of_the_picked_images_are_at_one_exposure(evaluation: Evaluation):
    held = evaluation.suites["held"]
    assert {picked.image for picked in held.picked} == {*GOOD}
    for number in range(len(held.picked)):
        about = json.loads((crops_folder(evaluation, "held", number) / ABOUT).read_text())
        assert list(about["pictures"]) == [
            "noisy",
            held.best_baseline(held.picked[number].image),
            "one",
            "same",
            "rgb",
            "truth",
        ]
        pictures = [
            np.asarray(Image.open(crops_folder(evaluation, "held", number) / file)).astype(float)
            for file in about["pictures"].values()
        ]
        assert {picture.shape for picture in pictures} == {(CROP, CROP, 3)}
        noisy, classical, one, same, _, truth = pictures
        assert np.array_equal(one, same)
        assert np.abs(classical - truth).mean() < np.abs(noisy - truth).mean()
        assert abs(classical.mean() - truth.mean()) < 4  # of 255


def test_an_evaluation_that_was_killed_measures_nothing_twice(folder: Path, evaluation: Evaluation, tmp_path: Path):
    """What the crash left of the last line counts as not there."""
    shutil.copytree(folder / "evaluation", tmp_path / "evaluation")
    results = tmp_path / "evaluation/results.jsonl"
    lines = results.read_bytes().splitlines(keepends=True)
    kept = lines[: len(lines) - 3]
    results.write_bytes(b"".join(kept) + lines[-3][:40])
    about = tmp_path / "evaluation/crops/held/0" / ABOUT
    drawn = about.stat().st_mtime_ns
    found = run(config(folder, output=str(tmp_path / "evaluation")))
    again = results.read_bytes().splitlines(keepends=True)
    assert again[: len(kept)] == kept
    assert len(again) == len(lines) + 1  # with the half line
    assert len({Measurement.from_line(line.decode()).key for line in again if line.endswith(b"}\n")}) == len(lines)
    assert [s.means for s in found.suites.values()] == [s.means for s in evaluation.suites.values()]
    assert about.stat().st_mtime_ns == drawn


def test_a_bundle_that_was_replaced_meanwhile_is_not_measured(folder: Path):
    evaluator = Evaluator(config(folder, suites={"held": pairs(folder)}).model_dump(mode="json"))
    sample = config(folder).suites["held"].samples()[0]
    with pytest.raises(ConfigError, match="a bundle was replaced while this ran"):
        evaluator.process(Task("key", "held", sample, "one", "of another"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"suites": {"s": {"raws": "missing"}}}, DataError, r"suites\.s: raws: .*missing is not a folder"),
        (
            {"suites": {"s": {"truth": "suite/raws"}}},
            DataError,
            r"a_0, broken_0, more/b_0 .* no truth of the same name",
        ),
        ({"suites": {"s": {"cameras": ["None"]}}}, DataError, r"suites\.s: cameras: \[None\] leaves none of 2 images"),
        ({"bundles": {"x": "suite"}}, BundleError, r"holds no manifest\.json"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_image_is(
    folder: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
):
    settings: dict[str, Any] = {"output": str(tmp_path / "out"), "bundles": {"x": str(folder / "bundle")}}
    for name, suite in changes.get("suites", {}).items():
        paths = {k: str(folder / v) if k in ("raws", "truth") else v for k, v in suite.items()}
        settings["suites"] = {name: pairs(folder) | paths}
    if "bundles" in changes:
        settings["bundles"] = {name: str(folder / path) for name, path in changes["bundles"].items()}
    with pytest.raises(error, match=message):
        run(config(folder, **settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundles": {"gaussian": "b"}}, "'gaussian' names two methods"),
        ({"onnx": {"one": "b.onnx"}}, "'one' names two methods"),
        ({"suites": {"../x": {"kind": "srgb_pairs", "folder": "f"}}}, "string should match pattern"),
        ({"suites": {}}, "at least 1 item"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(folder: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        config(folder, **changes)


def test_memory_is_what_is_held_on_top():
    meter = MemoryMeter()
    held = np.ones(60 << 20, np.uint8)
    found = meter.bytes()
    assert found is not None
    assert found == pytest.approx(held.nbytes, rel=0.2)


def test_an_infinite_metric_survives_its_line(evaluation: Evaluation):
    measurement = dataclasses.replace(
        evaluation.suites["held"].measurements[0], metrics={"psnr": math.inf, "ms_ssim": 1.0}
    )
    assert Measurement.from_line(measurement.to_line()) == measurement
