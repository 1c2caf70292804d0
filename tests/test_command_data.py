"""`stillgrain data`: a download made up here is sorted, checked and complained about, as a person does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from library.errors import ConfigError, DataError
from library.pairs.generate import read_planted
from library.pairs.index import write_index
from stillgrain import app
from tests.prepared_pairs import FAILED, write_pair


def test_a_download_is_made_up_sorted_and_checked(tmp_path: Path):
    flat, tree = tmp_path / "flat", tmp_path / "tree"
    run = CliRunner().invoke
    made = run(app, ["data", "generate", str(flat), "--flat", "--scenes=2", "--width=192", "--height=192", "--seed=5"])
    assert (made.exit_code, "2 scenes" in made.stdout) == (0, True)
    planted = read_planted(flat)
    assert (planted.seed, planted.width, planted.height, planted.flat) == (5, 192, 192, True)

    plan = run(app, ["data", "organize", str(flat), "--to", str(tree), "--dry-run"])
    assert "files would be placed" in plan.stdout
    assert not tree.exists()
    done = run(app, ["data", "organize", str(flat), "--to", str(tree), "--move"])
    assert (done.exit_code, len(list(tree.rglob("*.dng")))) == (0, len(planted.files))
    assert not list(flat.glob("*.dng"))

    checked = run(app, ["data", "check", str(tree), "--json", "--workers=1"])
    report = json.loads(checked.stdout)
    assert (checked.exit_code, report["bad"], len(report["files"])) == (1, 1, len(planted.files))
    table = run(app, ["data", "check", str(tree)])
    truncated = next(file for file in planted.files if file.flaw == "truncated")
    assert Path(truncated.path).name in table.stdout
    assert "1 unreadable" in table.stdout


def test_prepared_pairs_go_out_as_npz_come_in_again_and_are_summed_up(tmp_path: Path):
    prepared, files, again = tmp_path / "prepared", tmp_path / "npz", tmp_path / "again"
    write_index(prepared, [write_pair(prepared, (2, -4), size=(192, 200)), FAILED])
    run = CliRunner().invoke
    out = run(app, ["data", "export", str(prepared), "--format", "npz", "-o", str(files)])
    assert (out.exit_code, "1 pairs" in out.stdout, len(list(files.rglob("*.npz")))) == (0, True, 1)
    back = run(app, ["data", "import", str(files), "-o", str(again)])
    assert (back.exit_code, back.stdout) == (0, f"{again}: 1 pairs\n")
    found = run(app, ["data", "summary", str(prepared), "--pairs=1"])
    assert found.exit_code == 0
    assert "failed: a broken.arw: is truncated (1 pairs)" in found.stdout
    assert found.stdout.splitlines()[-1] == f"{prepared / 'summary.html'}: 1 pairs of 2 scenes, 1 failed"
    numbers = json.loads(run(app, ["data", "summary", str(again), "--json"]).stdout)
    assert (numbers["pairs"], numbers["failed"]) == (1, 0)
    assert (again / "summary.html").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["fetch", "rawnind", "--to", "{}", "--from", "nowhere"], ConfigError),
        (["fetch", "kodak", "--to", "{}", "--from", "https://HOST"], ConfigError),
        (["organize", "{}/missing", "--to", "{}"], DataError),
        (["check", "{}"], DataError),
        (["generate", "{}", "--width", "3"], DataError),
        (["export", "{}", "-o", "{}/npz"], DataError),
        (["import", "{}", "-o", "{}/prepared"], DataError),
        (["summary", "{}"], DataError),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_word_that_cannot_be_is_a_users_error(tmp_path: Path, words: list[str], error: type[Exception]):
    result = CliRunner().invoke(app, ["data", *(word.format(tmp_path) for word in words)])
    assert isinstance(result.exception, error)


@pytest.mark.parametrize("command", ["fetch", "organize", "check", "generate", "export", "import", "summary"])
def test_help_teaches_with_an_example(command: str):
    result = CliRunner().invoke(app, ["data", command, "--help"])
    assert result.exit_code == 0
    assert f"Example: stillgrain data {command}" in " ".join(result.stdout.split())
