from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from library.config import validate
from library.errors import ConfigError, DataError
from library.files.dng import write_cfa_dng
from library.files.exr import write_exr
from library.files.metadata import ImageMetadata
from library.files.picture import write_png
from workloads.evaluate import Config
from workloads.evaluations.suites import Buckets

RAWS = {"a_0": ("One", 100.0), "a_1": ("One", 3200.0), "b_0": ("Two", 6400.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three raws of two cameras with their truths, and an index of them in two formats."""
    folder = tmp_path_factory.mktemp("suites")
    for name, (model, iso) in RAWS.items():
        metadata = ImageMetadata(make="Maker", model=model, iso=iso)
        black = np.zeros((2, 2))
        write_cfa_dng(folder / f"raws/{name}.dng", np.ones((40, 40), np.uint16), cfa="RGGB", black_level=black,
                      white_level=255, metadata=metadata)  # fmt: skip
        write_exr(folder / f"truth/{name}.exr", np.ones((40, 40, 3)), chromaticities=None)
    rows = [
        {"raw": f"raws/{name}.dng", "truth": f"truth/{name}.exr", "camera": model, "iso": iso, "score": score}
        | {"split": split, "scene": name[0]}
        for (name, (model, iso)), score, split in zip(
            RAWS.items(), (0.99, 0.8, 0.6), ("test", "train", "test"), strict=True
        )
    ]
    with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "index.parquet")
    return folder


def suite(place: Path, **settings: Any) -> Any:
    paths = {"pairs": {"raws": str(place / "raws"), "truth": str(place / "truth")}}
    paths["index"] = {"index": str(place / "index.csv")}
    settings = {"kind": "pairs"} | settings
    data = {"suites": {"s": paths.get(settings["kind"], {}) | settings}, "output": str(place / "out")}
    return validate(Config, data, "test").suites["s"]


def names(found: Any) -> list[str]:
    return [sample.name for sample in found.samples()]


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"cameras": ["maker one"]}, ["a_0", "a_1"]),
        ({"not_cameras": ["Maker One"]}, ["b_0"]),
        ({"iso": [3200, 3200]}, ["a_1"]),
        ({"iso": [200, 1e6], "not_cameras": ["Maker Two"]}, ["a_1"]),
        ({"names": r"(?P<scene>[a-z])_\d"}, ["a_0", "a_1", "b_0"]),
    ],
)
def test_a_filter_asks_the_raws_themselves(folder: Path, filters: dict[str, Any], left: list[str]):
    assert names(suite(folder, **filters)) == left


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        ({"score": [0, 0.85]}, ["raws/a_1", "raws/b_0"]),
        ({"split": "test"}, ["raws/a_0", "raws/b_0"]),
        ({"cameras": ["Two"]}, ["raws/b_0"]),
        ({"split": "test", "iso": [0, 200], "score": [0.9, 1]}, ["raws/a_0"]),
    ],
)
def test_a_filter_asks_the_index(folder: Path, filters: dict[str, Any], left: list[str]):
    assert names(suite(folder, kind="index", **filters)) == left


def test_both_formats_of_an_index_give_the_same_images_with_all_they_say(folder: Path):
    samples = suite(folder, kind="index").samples()
    assert samples == suite(folder, kind="index", index=str(folder / "index.parquet")).samples()
    sample = samples[1]
    assert (sample.camera, sample.iso, sample.score, sample.split, sample.scene) == ("One", 3200.0, 0.8, "train", "a")
    assert Path(sample.noisy) == folder / "raws/a_1.dng"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ["Three"]}, r"cameras: \[Three\] leaves none of 3 images, which have Maker One, Maker Two"),
        ({"kind": "index", "iso": [1, 2]}, r"iso: \[1, 2\] leaves none of 3 images, which have 100, 3200, 6400"),
        ({"score": [0, 1]}, "nothing tells the score of any image here: give an index with that column"),
        ({"split": "test"}, "nothing tells the split"),
        ({"names": r"x_\d"}, r"'a_0' does not match x_\\d"),
        ({"names": r"(?P<iso>[a-z])_\d"}, "iso and score are numbers"),
    ],
)
def test_what_leaves_nothing_is_said_in_words(folder: Path, settings: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        suite(folder, **settings).samples()


def test_a_raw_that_cannot_be_read_is_not_left_out_in_silence(folder: Path, tmp_path: Path):
    for part in ("raws", "truth"):
        (tmp_path / part).mkdir()
        for file in (folder / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    (tmp_path / "raws/a_0.dng").write_bytes(b"II*\0 no raw")
    assert names(suite(tmp_path, cameras=["Maker Two"])) == ["a_0", "b_0"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("raws/a_0.dng,truth/none.exr,1", r"row 1: there is no .*none\.exr"),
        ("raws/a_0.dng,,1", "row 1 has no 'truth'"),
        ("raws/a_0.dng,truth/a_0.exr,many", "iso and score are numbers"),
        ("raws/a_0.dng,truth/a_0.exr,1\nraws/a_0.dng,truth/a_0.exr,1", "is there twice"),
        ("", "holds no rows"),
    ],
)
def test_a_bad_index_names_its_row(folder: Path, row: str, message: str):
    path = folder / "bad.csv"
    path.write_text(f"raw,truth,iso\n{row}\n" if row else "raw,truth,iso\n")
    with pytest.raises(DataError, match=message):
        suite(folder, kind="index", index=str(path)).samples()


def test_a_clean_suite_has_each_truth_once(folder: Path):
    (folder / "one.csv").write_text(
        "raw,truth\nraws/a_0.dng,truth/a_0.exr\nraws/a_1.dng,truth/a_0.exr\nraws/b_0.dng,truth/b_0.exr\n"
    )
    clean = suite(folder, kind="clean", of={"kind": "index", "index": str(folder / "one.csv")})
    assert names(clean) == ["raws/a_0", "raws/b_0"]
    assert clean.noise_free


def test_display_pictures_are_paired_by_how_their_names_end(tmp_path: Path):
    for name in ("3_X_1600_real", "3_X_1600_mean", "4_Y_100_real", "4_Y_100_mean", "other"):
        write_png(tmp_path / f"{name}.png", np.zeros((4, 4, 3), np.uint8))
    pattern = r"(?P<scene>\d+)_(?P<camera>\w+)_(?P<iso>\d+)"
    found = suite(tmp_path, kind="srgb_pairs", folder=str(tmp_path), noisy="_real", clean="_mean", names=pattern)
    assert [(s.name, s.scene, s.camera, s.iso) for s in found.samples()] == [
        ("3_X_1600", "3", "X", 1600.0),
        ("4_Y_100", "4", "Y", 100.0),
    ]
    (tmp_path / "4_Y_100_mean.png").unlink()
    with pytest.raises(DataError, match=r"4_Y_100_real has no 4_Y_100_mean"):
        found.samples()
    with pytest.raises(DataError, match="holds no pictures whose names end with '_noisy'"):
        suite(tmp_path, kind="srgb_pairs", folder=str(tmp_path)).samples()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iso": [2, 1]}, r"suites\.s\.pairs\.iso: \[2, 1\] holds nothing"),
        ({"names": "("}, r"suites\.s\.pairs\.names: is no regular expression"),
        ({"names": "(?P<author>.)"}, "has a group 'author'; known: scene, camera, iso, score"),
        ({"camera": ["One"]}, r"suites\.s\.pairs\.camera: unknown key; did you mean 'cameras'"),
        ({"kind": "folder"}, r"suites\.s: .*'pairs', 'index', 'prepared', 'srgb_pairs', 'clean'"),
    ],
)
def test_a_bad_suite_is_refused_by_its_key(folder: Path, settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        suite(folder, **settings)


def test_buckets_are_sets_of_images_by_score_of_which_none_is_empty():
    scores = {"a": 0.4, "b": 0.86, "c": 1.0}
    found = Buckets(at_most=(0.3, 0.9), at_least=(0.5, 1.0)).members(scores)
    assert found == {"≤ 0.9": ["a", "b"], "≥ 0.5": ["b", "c"], "≥ 1": ["c"]}
