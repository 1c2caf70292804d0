"""What a sweep's folder says: tables, the front, what mattered, the page, the winner. No training: folders are written
as runs write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from library.errors import DataError
from workloads.sweeps.page import write_sweep_page
from workloads.sweeps.promote import promote
from workloads.sweeps.results import Results, front_of
from workloads.sweeps.trials import Ledger, Trial

SPACE = {"optim.lr": {"loguniform": [1e-4, 1e-2]}, "losses.l1.weight": {"uniform": [0.0, 1.0]}}


def sweep_of(
    folder: Path, points: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Sequence[float]]], **config: Any
) -> Results:
    """A sweep whose trials have these overrides and these values, validated every ten steps."""
    folder.mkdir(parents=True)
    sweep = {
        "name": "sweep",
        "base": "base.yaml",
        "space": SPACE,
        "metrics": {"val/psnr": "max", "val/bpp": "min"},
        "searcher": {"kind": "random"},
        "scheduler": None,
        "seed": 0,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep | config, sort_keys=False))
    (folder / "base.yaml").write_text("workload: denoise\n")
    ledger = Ledger(UPath(folder))
    ledger.claim()
    for index, (overrides, values) in enumerate(zip(points, curves, strict=True)):
        trial = Trial(
            index, dict(overrides), status="done" if values else "failed", error=None if values else "no luck"
        )
        ledger.add(trial)
        run = folder / "trials" / trial.run
        (run / "bundle").mkdir(parents=True)
        steps = len(next(iter(values.values()), ()))
        (run / "run.yaml").write_text(yaml.safe_dump({"steps": 10 * steps, "name": trial.run}))
        lines = [
            {"step": 10 * (n + 1), "split": "val", "name": name, "value": series[n]}
            for n in range(steps)
            for name, series in values.items()
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if values:
            manifest = {"trial": index, "macs_per_pixel": 100.0 - index, "num_parameters": 7}
            (run / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    return Results(folder)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    random = np.random.default_rng(0)
    points = [
        {"optim.lr": float(10 ** random.uniform(-4, -2)), "losses.l1.weight": float(random.uniform())}
        for _ in range(12)
    ]
    # Good where the rate is near 1e-3; the weight changes nothing.
    curves = [
        {"psnr": [20.0, 30 - abs(np.log10(p["optim.lr"]) + 3)], "bpp": [1.0, 0.5 + 0.1 * n]}
        for n, p in enumerate(points)
    ]
    return sweep_of(tmp_path / "sweep", [*points, {"optim.lr": 1.0}], [*curves, {}])


def test_metrics_are_all_of_the_step_whose_weights_were_published(tmp_path: Path) -> None:
    results = sweep_of(tmp_path / "s", [{"optim.lr": 1e-3}], [{"psnr": [20.0, 30.0, 25.0], "bpp": [0.1, 0.9, 0.2]}])
    (trial,) = results.trials
    costs = {"macs_per_pixel": 100.0, "num_parameters": 7.0}
    assert (trial.step, trial.metrics) == (20, {"val/psnr": 30.0, "val/bpp": 0.9} | costs)


def test_what_a_network_costs_is_a_metric_as_any_other(tmp_path: Path) -> None:
    """The second is better and cheaper than the first; the third is cheaper still, but worse."""
    curves = [{"psnr": [value]} for value in (20.0, 30.0, 25.0)]
    metrics = {"val/psnr": "max", "macs_per_pixel": "min"}
    results = sweep_of(tmp_path / "s", [{"optim.lr": 1e-3}] * 3, curves, metrics=metrics)
    assert sorted(trial.index for trial in results.front) == [1, 2]
    assert results.best("macs_per_pixel").index == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nobody_beats_a_point_of_the_front_and_somebody_beats_every_other(points: list[tuple[int, int]]) -> None:
    front = front_of({n: list(point) for n, point in enumerate(points)}, ("max", "min"))

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1]

    for number, point in enumerate(points):
        assert (number in front) != any(beats(other, point) for other in points)


def test_what_decides_is_found_important(results: Results) -> None:
    found = results.importance("val/psnr")
    assert next(iter(found)) == "optim.lr"
    assert sum(found.values()) == pytest.approx(1)


def test_a_handful_of_trials_has_no_importance(tmp_path: Path) -> None:
    results = sweep_of(tmp_path / "s", [{"optim.lr": 1e-3, "losses.l1.weight": 0.1}], [{"psnr": [20.0], "bpp": [1.0]}])
    assert results.importance("val/psnr") == {}


def test_tables_hold_a_line_a_trial_the_failed_ones_with_their_error(results: Results) -> None:
    results.write()
    csv, parquet = (
        pyarrow.csv.read_csv(results.folder / "results.csv"),
        pyarrow.parquet.read_table(results.folder / "results.parquet"),
    )
    assert csv.column_names == parquet.column_names
    assert csv.num_rows == parquet.num_rows == 13
    assert parquet.column("error").to_pylist()[-1] == "no luck"
    assert parquet.column("val/psnr").to_pylist()[:-1] == [trial.metrics["val/psnr"] for trial in results.measured]
    assert "no luck" in results.table()
    assert f"best val/psnr: {results.best('val/psnr').metrics['val/psnr']:.4g}" in results.table()


def test_the_page_shows_every_trial_and_loads_nothing(results: Results) -> None:
    page = write_sweep_page(results).read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("<tr") == 1 + len(results.trials)
    assert "Pareto front" in page
    assert "Importance of each key for val/psnr" in page
    assert "no luck" in page
    assert not re.search(r"<svg(?![^>]*aria-label=\"[^\"]+\")", page)


def test_the_page_of_a_sweep_in_which_all_failed_says_why(tmp_path: Path) -> None:
    page = write_sweep_page(sweep_of(tmp_path / "s", [{"optim.lr": 1.0}], [{}])).read_text(encoding="utf-8")
    assert "no luck" in page


def test_the_winner_is_copied_with_its_config(results: Results, tmp_path: Path) -> None:
    best = results.best("val/bpp")
    promoted = promote(str(results.folder), str(tmp_path / "chosen"), best="val/bpp")
    assert promoted.trial.index == best.index == 0
    assert json.loads((tmp_path / "chosen" / "bundle" / "manifest.json").read_text())["trial"] == 0
    assert yaml.safe_load((tmp_path / "chosen" / "run.yaml").read_text())["name"] == "000"
    assert promote(str(results.folder), trial=3).folder == results.folder / "promoted"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"best": "val/beauty"}, "its metrics are val/psnr, val/bpp"),
        ({"trial": 99}, "has no trial 99"),
        ({"trial": 12}, "has published no bundle .no luck."),
    ],
)
def test_what_cannot_be_promoted_is_named(words: dict[str, Any], message: str, results: Results) -> None:
    with pytest.raises(DataError, match=message):
        promote(str(results.folder), **words)


def test_a_folder_that_is_no_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no sweep"):
        Results(tmp_path)
