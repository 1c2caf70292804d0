from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from upath import UPath

from library.config import load, validate
from library.errors import ConfigError
from library.files.atomic import whole_file
from library.files.places import place
from library.metrics import direction
from library.training.checkpoint import checkpoints, read_progress
from library.training.recorder import read_metrics
from workloads import denoise
from workloads.run import run
from workloads.runs.clean import clean
from workloads.runs.compare import compare
from workloads.runs.find import find_run, find_runs, select
from workloads.runs.folder import modified
from workloads.runs.labels import note, tag
from workloads.runs.page import write_comparison
from workloads.runs.read import read_run
from workloads.runs.show import describe, runs_table, sparkline

ROOT = Path(__file__).resolve().parents[2]
DAY = 24 * 3600


def settings(scenes: Path, storage: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "workload": "denoise",
        "name": name,
        "storage": str(storage),
        "model": {"kind": "nafnet", "width": 4},
        "dataset": {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 176},
        "losses": {"l1": {"weight": 1.0}},
        "batch_size": 2,
        "optim": {"lr": 5e-3},
        "steps": 6,
        "log_every": 1,
        "validate_every": 2,
        "checkpoint_every": 2,
        "num_pictures": 0,
        "scaling": {"workers": 0},
        **changes,
    }


def train(*args: Any, **changes: Any) -> Path:
    return Path(run(validate(denoise.Config, settings(*args, **changes), "test")).folder)


@pytest.fixture(scope="session")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with two finished runs, and one that stopped early because weights that do not move do not improve."""
    storage = tmp_path_factory.mktemp("trained")
    train(scenes, storage, "first", tags=["paper"])
    train(scenes, storage, "second", optim={"lr": 1e-4}, losses={"mse": {"weight": 0.5}})
    train(scenes, storage, "early", optim={"lr": 1e-30}, early_stop={"patience": 2})
    return storage


@pytest.fixture
def storage(trained: Path, tmp_path: Path) -> Path:
    """A copy to change: the three, one that was killed after its second checkpoint, and one that never began."""
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder)
    killed = shutil.copytree(folder / "first", folder / "killed")
    shutil.rmtree(killed / "checkpoints" / "step-00000006")
    shutil.rmtree(killed / "bundle")
    lines = (killed / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 5]
    (killed / "metrics.jsonl").write_text("".join(kept) + kept[-1][:20])
    (folder / "begun").mkdir()
    shutil.copy(folder / "first" / "run.yaml", folder / "begun" / "run.yaml")
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def age(path: Path, seconds: float) -> None:
    for each in (path, *path.rglob("*")):
        os.utime(each, (time.time() - seconds,) * 2)


# --- finding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first", "second", "early"])
def test_what_is_read_of_a_run_is_what_its_recorder_and_its_checkpoints_hold(trained: Path, name: str):
    """This module reads both files by itself, to be quick; so it has to agree with those who write them."""
    found = read_run(trained / name)
    values = [(step, split_name, value) for split_name, points in found.series.items() for step, value in points]
    recorded = [
        (line["step"], f"{line['split']}/{line['name']}", line["value"]) for line in read_metrics(trained / name)
    ]
    assert sorted(values) == sorted(recorded)
    progress = read_progress(checkpoints(trained / name)[-1])
    assert found.step == progress.step
    assert found.reason == progress.stopped
    assert {metric: (best.step, best.value) for metric, best in found.bests.items()} == {
        metric: (best.step, best.value) for metric, best in progress.best.items()
    }
    assert found.best == found.bests["val/psnr"]
    assert all(best.mode == direction(metric) for metric, best in found.bests.items())


def test_the_status_says_how_a_run_ended_and_nothing_that_nobody_knows(storage: Path):
    status = {found.name: (found.status, found.step) for found in find_runs(storage)}
    assert status == {
        "first": ("finished", 6),
        "second": ("finished", 6),
        "early": ("stopped early", 4),
        "killed": ("unfinished", 5),
        "begun": ("empty", 0),
    }
    assert "val/psnr had no new best" in str(find_run(storage, "early").reason)


def test_a_run_that_only_wants_its_last_validation_is_not_finished(storage: Path):
    """Its last training loss is there, and so is every step; its bundle may not be."""
    killed = storage / "first"
    shutil.rmtree(killed / "checkpoints" / "step-00000006")
    assert find_run(storage, "first").step == 6
    assert find_run(storage, "first").status == "unfinished"


def test_the_steps_of_later_stages_count(storage: Path):
    file = storage / "first" / "run.yaml"
    config = load(file) | {"then": [{"steps": 4, "changes": {"optim.lr": 1e-4}}, {"steps": 5, "changes": {"x": 1}}]}
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    found = find_run(storage, "first")
    assert (found.step, found.steps, found.status) == (6, 15, "unfinished")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("run.yaml", b"name: [", "not valid YAML"),
        ("run.yaml", b"", "empty"),
        ("run.yaml", b"\xff\xfe\x00", "not a text file"),
        ("metrics.jsonl", b"[]\n", "no recorded value"),
        ("metrics.jsonl", b"{\n", "no recorded value"),
    ],
)
def test_a_broken_run_is_shown_as_such_and_hides_no_other(storage: Path, file: str, content: bytes, reason: str):
    others = {found.name for found in find_runs(storage)} - {"second"}
    (storage / "second" / file).write_bytes(content)
    found = {each.name: each for each in find_runs(storage)}
    assert found.keys() == others | {"second"}
    assert found["second"].status == "broken"
    assert reason in str(found["second"].reason)
    assert [each.name for each in found.values() if each.status == "broken"] == ["second"]


@pytest.mark.parametrize(
    "config", ["steps: many", "best: 3\nsteps: 1", "tags: good", "then: 1\nsteps: 2", "tags: [1, x]\nnotes: 5"]
)
def test_a_config_edited_into_nonsense_is_still_listed(storage: Path, config: str):
    (storage / "first" / "run.yaml").write_text(config)
    found = find_run(storage, "first")
    assert found.status in ("finished", "unfinished")
    json.dumps(describe(found))


def test_a_damaged_state_is_passed_over_for_the_one_before(storage: Path):
    (storage / "first" / "checkpoints" / "step-00000006" / "state.json").write_text("{")
    found = find_run(storage, "first")
    assert found.progress["step"] == 4
    assert found.status == "unfinished"


def test_a_folder_without_a_config_is_no_run(storage: Path):
    assert (storage / "stores").is_dir()
    assert "stores" not in {found.name for found in find_runs(storage)}


def test_the_newest_value_comes_first_whatever_was_written_of_the_run_later(storage: Path):
    order = ["early", "killed", "first", "second"]
    shutil.rmtree(storage / "begun")
    for number, name in enumerate(order):
        os.utime(storage / name / "metrics.jsonl", (time.time() - number * DAY,) * 2)
    tag(storage, "second", ["touched"])
    assert [found.name for found in find_runs(storage)] == order


def test_a_run_is_found_by_its_name_and_by_its_folder_and_otherwise_refused_with_what_is_there(storage: Path):
    assert find_run(storage, "first") == find_run("elsewhere", str(storage / "first"))
    with pytest.raises(ConfigError, match=r"'frist' is neither .* did you mean 'first'\? known there: begun, early"):
        find_run(storage, "frist")
    with pytest.raises(ConfigError, match="there is no folder"):
        find_runs(storage / "nowhere")


def test_only_the_page_of_a_comparison_loads_what_takes_seconds(storage: Path):
    code = """
import sys
from workloads.runs import clean, compare, find, labels, show
runs = find.find_runs(sys.argv[1])
assert len(runs) == 5
show.runs_table(runs, "val/psnr")
clean.clean(sys.argv[1])
labels.tag(sys.argv[1], "first", ["quick"])
print(sorted({"torch", "ray", "matplotlib", "jinja2"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(storage)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_tags_narrow_the_choice(storage: Path):
    tag(storage, "second", ["paper", "good"])
    runs = find_runs(storage)
    # `killed` and `begun` are copies of `first`, its tag included.
    assert {each.name for each in select(runs, tags=["paper"])} == {"first", "second", "killed", "begun"}
    assert [each.name for each in select(runs, tags=["paper", "good"])] == ["second"]
    assert select(runs, tags=["pap"]) == []


@pytest.mark.parametrize(("metric", "mode"), [("val/ms_ssim", "max"), ("train/loss", "min"), ("val/psnr", "max")])
def test_sorting_puts_the_best_first_and_those_without_the_metric_last(storage: Path, metric: str, mode: str):
    ordered = select(find_runs(storage), sort=metric)
    assert ordered[-1].name == "begun"
    bests = [(max if mode == "max" else min)(value for _, value in each.series[metric]) for each in ordered[:-1]]
    assert bests == sorted(bests, reverse=mode == "max")
    assert len(set(bests)) > 1


def test_sorting_goes_by_the_direction_of_the_config_whose_metric_it_is(storage: Path):
    for each in find_runs(storage):
        file = storage / each.name / "run.yaml"
        file.write_text(yaml.safe_dump(load(file) | {"best": {"metric": "val/noise", "mode": "min"}}))
    for name, value in (("first", 3.0), ("second", 1.0)):
        with open(storage / name / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 6, "split": "val", "name": "noise", "value": value}) + "\n")
    assert [each.name for each in select(find_runs(storage), sort="val/noise")[:2]] == ["second", "first"]
    with pytest.raises(ConfigError, match="unknown metric 'val/taste'"):
        select(find_runs(storage), sort="val/taste")


# --- showing ----------------------------------------------------------------------------------------------------------


def test_the_description_of_a_run_is_json_with_all_that_is_known(storage: Path):
    shown = json.loads(json.dumps(describe(find_run(storage, "first"))))
    manifest = json.loads((storage / "first" / "bundle" / "manifest.json").read_text())
    assert shown["bundle"] == {"step": manifest["step"], "digest": manifest["digest"]}
    assert shown["bundle"]["step"] == shown["best"]["step"]
    assert shown["best"] == {"metric": "val/psnr", **shown["bests"]["val/psnr"]}
    assert shown["checkpoints"] == ["step-00000004", "step-00000006"]
    assert shown["checkpoint_bytes"] == sum(
        file.stat().st_size for file in (storage / "first" / "checkpoints").rglob("*") if file.is_file()
    )
    assert shown["last"]["val/psnr"]["step"] == 6
    assert shown["config"] == load(storage / "first" / "run.yaml")


def test_a_curve_rises_where_its_values_do():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([7, 0]) == "█▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline([0, math.nan, 1, math.inf]) == "▁ █ "
    assert sparkline([1e-30 * n for n in range(1000)], width=8) == "▁▂▃▄▅▆▇█"
    assert [len(sparkline(list(range(n)))) for n in (1, 39, 40, 41, 1000)] == [1, 39, 40, 40, 40]


# --- tags and notes ---------------------------------------------------------------------------------------------------


def test_tags_and_notes_change_nothing_else_of_the_config(storage: Path):
    file = storage / "first" / "run.yaml"
    file.write_text(
        "name: '1e5'\nlr: 1e-4\nsmall: 1.0e-30\nkeys: {a: null, 'yes': on, empty: {}, list: [1, '2', 3e8]}\n"
        "text: \"é: # no comment\\n\"\nseed: 0\nbig: 12345678901234567890\nfraction: 0.1\nday: '2026-01-01'\n"
    )
    before = load(file)
    assert before["lr"] == 1e-4
    assert isinstance(before["name"], str)
    assert tag(storage, "first", ["good", "1e-4", "yes"]).tags == ("good", "1e-4", "yes")
    assert note(storage, "first", "better: [see] 'second'\n  # 1e5 ü").notes == "better: [see] 'second'\n  # 1e5 ü"
    after = load(file)
    assert (after.pop("tags"), after.pop("notes")) == (["good", "1e-4", "yes"], "better: [see] 'second'\n  # 1e5 ü")
    assert after == before
    assert list(after) == list(before)
    assert [type(value) for value in after.values()] == [type(value) for value in before.values()]


def test_tags_are_kept_once_and_in_order_and_can_be_taken_away(storage: Path):
    tag(storage, "second", ["b", "a", "b"])
    assert tag(storage, "second", ["c", "a"]).tags == ("b", "a", "c")
    assert tag(storage, "second", [], ["a", "never"]).tags == ("b", "c")
    note(storage, "second", "x")
    assert note(storage, "second", "").notes == ""


@pytest.mark.parametrize("word", ["", "two words", "new\nline", "tab\t"])
def test_a_tag_is_one_word(storage: Path, word: str):
    before = tree(storage)
    with pytest.raises(ConfigError, match="is not one word"):
        tag(storage, "first", [word])
    assert tree(storage) == before


def test_a_tagged_run_still_belongs_to_its_config(storage: Path, scenes: Path):
    tag(storage, "first", ["good"])
    note(storage, "first", "kept")
    before = tree(storage / "first")
    file = storage / "first" / "run.yaml"
    config = load(file) | {"storage": str(storage)}
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    run(validate(denoise.Config, settings(scenes, storage, "first", tags=["paper"]), "test"))
    found = find_run(storage, "first")
    assert (found.tags, found.notes) == (("paper", "good"), "kept")
    assert tree(storage / "first").keys() == before.keys()


def test_a_broken_run_is_not_written_to(storage: Path):
    (storage / "first" / "run.yaml").write_text("[")
    with pytest.raises(ConfigError, match="'first' is broken"):
        note(storage, "first", "x")
    assert (storage / "first" / "run.yaml").read_text() == "["


# --- comparing --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Refuses tags that are not closed in order; keeps cells and attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.bold: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style" and data.strip():
            self.texts.append(" ".join(data.split()))
            if self.open[-1] == "b":
                self.bold.append(data)


def test_settings_that_differ_are_shown_and_no_other(storage: Path):
    comparison = compare(storage, ["first", "second"])
    assert comparison.settings == {
        "optim.lr": ["0.005", "0.0001"],
        "losses.l1.kind": ["l1", "–"],
        "losses.l1.weight": ["1.0", "–"],
        "losses.mse.kind": ["–", "mse"],
        "losses.mse.weight": ["–", "0.5"],
    }
    assert compare(storage, ["first", "killed"]).settings == {}


def test_the_best_of_each_metric_is_marked(storage: Path):
    comparison = compare(storage, ["first", "second", "begun"])
    rows = dict(comparison.rows)
    assert rows["val/psnr, best (max)"][2] == ("–", False)
    for metric in ("val/psnr", "val/ms_ssim", "val/psnr.linear"):
        for row, pick in ((f"{metric}, best (max)", max), (f"{metric}, last", lambda values: values[-1])):
            values = [pick([value for _, value in each.series[metric]]) for each in comparison.runs[:2]]
            assert [best for _, best in rows[row]] == [value == max(values) for value in values] + [False]
    assert not any(best for _, best in rows["train/loss, last"])


def test_runs_that_cannot_be_compared_are_refused(storage: Path):
    with pytest.raises(ConfigError, match="two runs or more"):
        compare(storage, ["first", str(storage / "first")])
    (storage / "second" / "run.yaml").write_text("[")
    with pytest.raises(ConfigError, match="'second' cannot be compared"):
        compare(storage, ["first", "second"])


def test_runs_of_one_name_are_told_apart_by_their_folders(storage: Path, trained: Path):
    comparison = compare(storage, ["first", str(trained / "first")])
    assert comparison.labels == [str(storage / "first"), str(trained / "first")]


def test_the_page_holds_tables_and_curves_and_fetches_nothing(storage: Path, tmp_path: Path):
    file = storage / "second" / "run.yaml"
    file.write_text(yaml.safe_dump(load(file) | {"remark": "<script>alert(1)</script>"}))
    comparison = compare(storage, ["first", "second", "begun"])
    path = Path(write_comparison(comparison, tmp_path / "pages" / "compare.html"))
    page = Page(path)
    assert "<script>alert(1)</script>" in page.texts
    assert "script" not in {tag for tag, _ in page.tags}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["train/loss", "val/psnr", "val/ms_ssim", "val/psnr.linear"]
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") for image in images)
    assert {"optim.lr", "first", "second", "begun"} <= set(page.texts)
    assert page.bold == [text for _, cells in comparison.rows for text, best in cells if best]
    assert len(page.bold) >= 6
    first = path.read_bytes()
    assert write_comparison(compare(storage, ["first", "second", "begun"]), path).read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["compare.html"]


# --- cleaning ---------------------------------------------------------------------------------------------------------


def test_without_a_yes_nothing_is_removed_and_with_it_exactly_what_was_told(storage: Path):
    before = tree(storage)
    told = clean(storage)
    assert tree(storage) == before
    assert "nothing is yet" in str(told)
    done = clean(storage, confirmed=True)
    assert done.removals == told.removals
    gone = before.keys() - tree(storage).keys()
    told_paths = [Path(removal.path).relative_to(storage) for removal in told.removals]
    assert gone == {path for path in before if any(Path(path).is_relative_to(root) for root in told_paths)}
    assert sum(removal.num_bytes for removal in told.removals) == sum(len(before[path] or b"") for path in gone)
    assert {path: content for path, content in before.items() if path not in gone} == tree(storage)
    assert str(clean(storage, confirmed=True)) == "nothing to remove"


def test_only_checkpoints_of_runs_that_have_ended_go_and_their_end_stays_recorded(storage: Path, scenes: Path):
    kept = {name: tree(storage / name) for name in ("killed", "begun", "stores")}
    status = {found.name: (found.status, found.reason, found.best) for found in find_runs(storage)}
    clean(storage, confirmed=True)
    assert {name: tree(storage / name) for name in kept} == kept
    assert {found.name: (found.status, found.reason, found.best) for found in find_runs(storage)} == status
    for name in ("first", "second", "early"):
        assert (storage / name / "bundle" / "model.safetensors").exists()
        assert [p.name for p in (storage / name).rglob("*.json") if "checkpoints" in p.parts] == ["state.json"]
        assert not list((storage / name / "checkpoints").rglob("*.safetensors"))


def test_a_cleaned_run_is_left_as_it_is_when_it_is_asked_for_again(storage: Path, scenes: Path):
    """Without the record of its end it would be trained anew, over its numbers."""
    file = storage / "first" / "run.yaml"
    file.write_text(yaml.safe_dump(load(file) | {"storage": str(storage)}, sort_keys=False))
    clean(storage, ["first"], confirmed=True)
    before = tree(storage / "first")
    run(validate(denoise.Config, settings(scenes, storage, "first"), "test"))
    after = tree(storage / "first")
    assert after.keys() == before.keys()
    assert after["metrics.jsonl"] == before["metrics.jsonl"]


@pytest.mark.parametrize(("keep_last", "kept"), [(1, ["step-00000006"]), (2, ["step-00000004", "step-00000006"])])
def test_the_last_checkpoints_stay_whole_if_wanted(storage: Path, keep_last: int, kept: list[str]):
    clean(storage, ["first"], keep_last=keep_last, confirmed=True)
    assert [c.name for c in checkpoints(storage / "first") if (c / "tensors.safetensors").exists()] == kept
    assert len(checkpoints(storage / "second")) == 2
    with pytest.raises(ConfigError, match="--keep-last is -1"):
        clean(storage, keep_last=-1)


def test_remains_of_killed_writers_go_and_what_may_still_be_written_stays(storage: Path, tmp_path: Path):
    folder = storage / "killed"
    for place_of_it in (folder, folder / "checkpoints"):
        for name in (".old.0123.tmp", ".young.0123.tmp"):
            (place_of_it / name).mkdir()
            (place_of_it / name / "tensors").write_bytes(b"1234")
        (place_of_it / ".file.0123.tmp").write_bytes(b"12")
        (place_of_it / "mine.tmp").write_bytes(b"1")
        for name in (".old.0123.tmp", ".file.0123.tmp"):
            age(place_of_it / name, DAY)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".old.0123.tmp").write_bytes(b"not this run's")
    age(outside, DAY)
    (folder / "link").symlink_to(outside)
    removals = clean(storage, ["killed"], confirmed=True).removals
    assert sorted((removal.path.name, removal.num_bytes) for removal in removals) == [
        *[(".file.0123.tmp", 2)] * 2,
        *[(".old.0123.tmp", 4)] * 2,
    ]
    assert {p.name for p in folder.rglob("*.tmp")} == {".young.0123.tmp", "mine.tmp"}
    assert (outside / ".old.0123.tmp").exists()


def test_whole_runs_go_only_by_name(storage: Path):
    before = tree(storage)
    with pytest.raises(ConfigError, match="name them"):
        clean(storage, whole=True, confirmed=True)
    with pytest.raises(ConfigError, match="'stores' is neither"):
        clean(storage, ["first", "stores"], whole=True, confirmed=True)
    assert tree(storage) == before
    (storage / "second" / "run.yaml").write_text("[")
    cleaning = clean(storage, ["second", "killed", "killed"], whole=True, confirmed=True)
    assert [removal.path.name for removal in cleaning.removals] == ["second", "killed"]
    assert {found.name for found in find_runs(storage)} == {"first", "early", "begun"}
    assert (storage / "stores").exists()


# --- in an object store -----------------------------------------------------------------------------------------------


def sent(storage: Path, uri: str) -> UPath:
    """The runs of a storage, copied to a URI."""
    remote = place(uri)
    for file in storage.rglob("*"):
        if file.is_file() and "stores" not in file.parts:
            with whole_file(remote / file.relative_to(storage).as_posix()) as temporary:
                shutil.copy(file, temporary)
    return remote


@pytest.fixture
def in_memory(storage: Path, tmp_path: Path) -> UPath:
    return sent(storage, f"memory:/{tmp_path}/runs")


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest, storage: Path, tmp_path: Path) -> UPath:
    root = "memory:/" if request.param == "memory" else request.getfixturevalue("s3")
    return sent(storage, f"{root}{tmp_path}/runs")


def objects(folder: UPath) -> dict[str, bytes]:
    """What an object store knows of a tree: no folders, but files with their content."""
    root = folder.path
    return {path.path.removeprefix(root): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_place(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in ("folder", "changed")}


def test_a_run_is_the_same_in_an_object_store_as_in_a_folder(storage: Path, remote: UPath):
    here, there = ({found.name: describe(found) for found in find_runs(str(at))} for at in (storage, remote))
    assert {name: without_place(facts) for name, facts in there.items()} == {
        name: without_place(facts) for name, facts in here.items()
    }
    assert there["first"]["folder"] == f"{remote}/first"
    mine, theirs = (compare(str(at), ["first", "second", "begun"]) for at in (storage, remote))
    assert (theirs.settings, theirs.rows, theirs.labels) == (mine.settings, mine.rows, mine.labels)
    page = write_comparison(theirs, f"{remote}/pages/compare.html")
    assert page.read_bytes() == write_comparison(mine, storage / "compare.html").read_bytes()


def test_a_broken_run_in_an_object_store_is_shown_as_such(in_memory: UPath):
    (in_memory / "second" / "run.yaml").write_bytes(b"name: [")
    (in_memory / "early" / "metrics.jsonl").write_bytes(b"{\n")
    status = {found.name: found.status for found in find_runs(str(in_memory))}
    assert {name for name, word in status.items() if word == "broken"} == {"second", "early"}
    with pytest.raises(ConfigError, match="'second' is broken"):
        tag(str(in_memory), "second", ["x"])


def test_a_run_in_an_object_store_is_read_while_it_is_written(s3: str, storage: Path, tmp_path: Path):
    """Each commit replaces the whole file there, so a reader that asks twice gets the length of one and no other."""
    remote = sent(storage, f"{s3}{tmp_path}/runs")
    metrics = remote / "early" / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)

    def write() -> None:
        for number in range(60):
            metrics.write_bytes(b"".join(lines[: 1 + number % len(lines)]))
        metrics.write_bytes(b"".join(lines))

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(write)
        while not writer.done():
            assert 1 <= len(read_metrics(remote / "early")) <= len(lines)
            assert find_run(str(remote), "early").status == "stopped early"
    writer.result()
    assert len(read_metrics(remote / "early")) == len(lines)


def test_an_object_store_tells_when_a_run_changed(remote: UPath):
    """UPath reads 1970 where a store names its times otherwise, as the one in memory does."""
    before = datetime.now(UTC) - timedelta(seconds=1)  # S3 has whole seconds
    (remote / "early" / "metrics.jsonl").write_bytes((remote / "early" / "metrics.jsonl").read_bytes())
    changed = find_run(str(remote), "early").changed
    assert changed is not None
    assert before <= changed <= datetime.now(UTC)


def test_the_newest_value_comes_first_in_an_object_store_too(in_memory: UPath):
    for name in ("first", "killed", "early"):
        (in_memory / name / "metrics.jsonl").write_bytes((in_memory / name / "metrics.jsonl").read_bytes())
    assert [found.name for found in find_runs(str(in_memory))][:3] == ["early", "killed", "first"]


def test_a_time_that_a_store_does_not_tell_is_not_made_up(remote: UPath):
    assert modified(remote / "first") is None
    untold = replace(find_run(str(remote), "first"), changed=None)
    assert untold.to_json()["changed"] is None
    assert list(runs_table([untold]).columns[-1].cells) == ["–"]


def test_tags_and_notes_in_an_object_store_are_those_in_a_folder(storage: Path, in_memory: UPath):
    for at in (str(storage), str(in_memory)):
        assert tag(at, "second", ["good", "x"]).tags == ("good", "x")
        assert tag(at, "second", [], ["x"]).tags == ("good",)
        assert note(at, "second", "ü: [see]").notes == "ü: [see]"
        assert [found.name for found in select(find_runs(at), tags=["good"])] == ["second"]
    file = "second/run.yaml"
    assert (in_memory / file).read_bytes() == (storage / file).read_bytes()


def test_cleaning_an_object_store_leaves_what_it_leaves_of_a_folder(storage: Path, in_memory: UPath):
    before = objects(in_memory)
    told = clean(str(in_memory))
    assert objects(in_memory) == before
    done = clean(str(in_memory), confirmed=True)
    assert done.removals == told.removals
    mine = clean(storage, confirmed=True)
    assert {(r.path.name, r.num_bytes, r.why) for r in done.removals} == {
        (r.path.name, r.num_bytes, r.why) for r in mine.removals
    }
    left = {f"/{file}": content for file, content in tree(storage).items() if content is not None}
    assert objects(in_memory) == {file: content for file, content in left.items() if not file.startswith("/stores")}
    assert str(clean(str(in_memory), confirmed=True)) == "nothing to remove"


def test_what_is_cleaned_or_tagged_in_an_object_store_is_so_for_whoever_looks_next(remote: UPath):
    clean(str(remote), ["early"], confirmed=True)
    assert find_run(str(remote), "early").status == "stopped early"
    assert not [file for file in objects(remote / "early") if file.endswith("tensors.safetensors")]
    clean(str(remote), ["second"], whole=True, confirmed=True)
    assert tag(str(remote), "begun", ["kept"]).tags == ("paper", "kept")
    assert {found.name: found.tags for found in find_runs(str(remote))} == {
        "first": ("paper",),
        "killed": ("paper",),
        "early": (),
        "begun": ("paper", "kept"),
    }


def test_a_young_temporary_file_in_an_object_store_stays(in_memory: UPath):
    """It used to be of 1970 and so to be removed while another program wrote it."""
    (in_memory / "killed" / ".young.0123.tmp").write_bytes(b"1234")
    (in_memory / "killed" / "checkpoints" / ".folder.0123.tmp").mkdir()
    (in_memory / "killed" / "checkpoints" / ".folder.0123.tmp" / "tensors").write_bytes(b"1234")
    (in_memory / "killed" / ".empty.0123.tmp").mkdir()  # of a folder the store in memory tells no time at all
    before = objects(in_memory / "killed")
    assert clean(str(in_memory), ["killed"], confirmed=True).removals == []
    assert objects(in_memory / "killed") == before


def test_a_path_is_never_taken_for_one_in_the_storages_bucket(storage: Path, in_memory: UPath):
    """/tmp/runs/first joined to memory://a/runs was memory:///tmp/runs/first."""
    assert find_run(str(in_memory), str(storage / "first")).folder == storage / "first"
    assert find_run(str(storage), f"{in_memory}/first").folder == in_memory / "first"
    assert find_run("s3://elsewhere", f"{in_memory}/first").folder == in_memory / "first"
    (in_memory / "only" / "there").mkdir(parents=True)
    (in_memory / "only" / "there" / "run.yaml").write_text("name: there")
    with pytest.raises(ConfigError, match=r"is neither a run in memory://.*known there: begun, early, first"):
        find_run(str(in_memory), f"{in_memory.path}/only/there")
