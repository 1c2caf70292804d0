from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from library.bundle import write_bundle
from library.errors import BundleError, DataError
from library.files.exr import read_exr, write_exr
from library.files.raw import read_raw
from library.inference.classical import best_classical
from library.metrics import compare_camera_rgb
from library.models import nafnet
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.levels import normalize_levels
from workloads import evaluate, simulate
from workloads.evaluate import METRICS, Config, Evaluation, run

pytestmark = pytest.mark.usefixtures("ray_cluster")

CROP, HEIGHT, WIDTH = 162, 164, 170
GOOD = ("a_0", "more/b_0")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As in the actors; and threads on tiny pictures take seconds to wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of an untrained NAFNet, which is the bilinear demosaic; a suite of three raws, one of them cut short."""
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
    model = nafnet.Config(width=4, encoder_blocks=(1,), middle_blocks=0, decoder_blocks=(1,)).build().eval()
    write_bundle(folder / "bundle", model, name="untrained", training={}, data_digest="none", metrics={}, step=0)
    return folder


def config(folder: Path, **changes: Any) -> Config:
    places = {"bundle": "bundle", "raws": "suite/raws", "truth": "suite/truth", "output": "evaluation"}
    paths = {key: str(folder / path) for key, path in places.items()}
    settings = {"baselines": ["gaussian", "wavelet"], "crop": CROP, "scaling": {"workers": 2, "cpus_per_worker": 1}}
    return Config.model_validate(paths | settings | changes)


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return run(config(folder))


def centre(picture: torch.Tensor) -> torch.Tensor:
    """(1, C, CROP, CROP) of a (C, H, W) picture."""
    top, left = (HEIGHT - CROP) // 2, (WIDTH - CROP) // 2
    return picture[None, :, top : top + CROP, left : left + CROP]


def opened(folder: Path, name: str) -> tuple[torch.Tensor, str, torch.Tensor, torch.Tensor]:
    """A raw's normalised mosaic and its CFA, the centre of its truth, its colour matrix."""
    raw = read_raw(folder / "suite/raws" / f"{name}.dng")
    truth = torch.from_numpy(read_exr(folder / "suite/truth" / f"{name}.exr").rgb).permute(2, 0, 1)
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    assert raw.xyz_to_camera is not None
    return mosaic, raw.cfa, centre(truth), torch.from_numpy(raw.xyz_to_camera)[None]


def test_every_method_has_finite_numbers_for_every_raw(evaluation: Evaluation):
    assert tuple(evaluation.images) == GOOD
    for image in evaluation.images.values():
        assert list(image["metrics"]) == ["noisy", "gaussian", "wavelet", "denoised"]
        assert all(metrics.keys() == METRICS.keys() for metrics in image["metrics"].values())
        assert all(math.isfinite(value) for metrics in image["metrics"].values() for value in metrics.values())


@pytest.mark.parametrize("name", GOOD)
def test_the_noisy_and_the_denoised_row_equal_a_direct_computation(folder: Path, evaluation: Evaluation, name: str):
    """The untrained network is the bilinear demosaic, whichever CFA phase the raw has."""
    mosaic, cfa, truth, matrix = opened(folder, name)
    mask = (truth < 1).all(dim=1, keepdim=True).float()
    found = evaluation.images[name]["metrics"]
    assert found["noisy"] == compare_camera_rgb(centre(demosaic_malvar(mosaic, cfa=cfa)), truth, mask, matrix)
    direct = compare_camera_rgb(centre(demosaic_bilinear(mosaic, cfa=cfa)), truth, mask, matrix)
    assert found["denoised"] == pytest.approx(direct, rel=1e-5)


def test_the_classical_rows_are_the_best_that_the_library_finds(folder: Path, evaluation: Evaluation):
    mosaic, cfa, truth, matrix = opened(folder, "a_0")
    mask = torch.ones(1, 1, CROP, CROP)
    best = best_classical(centre(demosaic_malvar(mosaic, cfa=cfa)), truth, mask, matrix, methods=["gaussian"])
    image = evaluation.images["a_0"]
    assert image["metrics"]["gaussian"] == best["gaussian"].metrics
    assert image["parameters"]["gaussian"] == best["gaussian"].parameters
    assert image["best_baseline"] == max(("gaussian", "wavelet"), key=lambda method: image["metrics"][method]["psnr"])


def test_a_damaged_raw_is_named_with_its_reason_and_harms_no_other(evaluation: Evaluation):
    assert list(evaluation.failures) == ["broken_0"]
    assert "truncated or damaged" in evaluation.failures["broken_0"]
    assert evaluation.exit_code == 1
    assert "failed: broken_0: " in str(evaluation)


def test_means_are_over_the_images(evaluation: Evaluation):
    for method, means in evaluation.means.items():
        for name, mean in means.items():
            assert mean == pytest.approx(np.mean([evaluation.images[i]["metrics"][method][name] for i in GOOD]))


def test_the_files_say_what_was_returned(folder: Path, evaluation: Evaluation):
    assert Evaluation.read(folder / "evaluation") == evaluation
    with open(folder / "evaluation/evaluation.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["method"]) for row in rows] == [
        (name, method) for name in GOOD for method in ("noisy", "gaussian", "wavelet", "denoised")
    ]
    for row in rows:
        assert {m: float(row[m]) for m in METRICS} == evaluation.images[row["image"]]["metrics"][row["method"]]


def test_the_table_has_a_line_for_every_method_with_its_means(evaluation: Evaluation):
    lines = evaluation.table().splitlines()
    for method, means in evaluation.means.items():
        (line,) = (line for line in lines if evaluate.METHODS[method] in line)
        assert all(evaluate.format_metric(name, value) in line for name, value in means.items())


def test_the_crops_show_the_four_pictures_at_one_exposure(folder: Path, evaluation: Evaluation):
    crops = evaluation.images["more/b_0"]["crops"]
    assert set(crops) == {"noisy", "classical", "denoised", "truth"}
    pictures = {label: np.asarray(Image.open(folder / "evaluation" / path)) for label, path in crops.items()}
    assert {picture.shape for picture in pictures.values()} == {(CROP, CROP, 3)}
    means = [picture.mean() for picture in pictures.values()]
    assert max(means) - min(means) < 4  # of 255
    errors = {label: np.abs(picture - pictures["truth"].astype(float)).mean() for label, picture in pictures.items()}
    assert errors["truth"] < errors["classical"] < errors["noisy"]


def test_truth_that_does_not_fit_its_raw_is_a_failure_in_words(folder: Path, tmp_path: Path):
    whole = np.ones((HEIGHT, WIDTH, 3))
    write_exr(tmp_path / "a_0.exr", whole[:, 2:], chromaticities=None)
    write_exr(tmp_path / "more/b_0.exr", whole, chromaticities="rec2020")
    write_exr(tmp_path / "broken_0.exr", whole, chromaticities=None)
    found = run(config(folder, truth=str(tmp_path), output=str(tmp_path / "evaluation"), baselines=[]))
    assert found.images == {}
    assert "is 168 x 164 px, but its raw is 170 x 164" in found.failures["a_0"]
    assert "not camera RGB" in found.failures["more/b_0"]
    assert "0 raws" in found.table()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"raws": "missing"}, DataError, r"raws: .*missing is not a folder"),
        ({"truth": "suite/raws"}, DataError, r"a_0, broken_0, more/b_0 .* no truth of the same name"),
        ({"raws": "bundle", "truth": "bundle"}, DataError, "holds no raws"),
        ({"bundle": "suite"}, BundleError, r"holds no manifest\.json"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_raw_is_read(
    folder: Path, tmp_path: Path, changes: dict[str, str], error: type[Exception], message: str
):
    paths = {key: str(folder / path) for key, path in changes.items()} | {"output": str(tmp_path)}
    with pytest.raises(error, match=message):
        run(config(folder, **paths))
    assert list(tmp_path.iterdir()) == []


def test_reading_an_evaluation_that_is_not_there_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(DataError, match="make one with `workload: evaluate`"):
        Evaluation.read(tmp_path)
