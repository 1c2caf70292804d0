"""What the README shows is true: its notebook runs, its commands exist, its paths are there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.command import stillgrain
from workloads.run import read_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_notebook_reads_a_raw_trains_ten_steps_and_applies_the_bundle(
    raw_dng: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = blocks("python")
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 15
    config = yaml.safe_load((ROOT / "workloads/configs/denoise_demo.yaml").read_text())
    config["dataset"] |= {"scenes": str(scenes), "held_out": 0.34, "validation_crop": 176}
    (tmp_path / "workloads" / "configs").mkdir(parents=True)
    (tmp_path / "workloads" / "configs" / "denoise_demo.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "photo.dng").write_bytes(raw_dng.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    raw, camera_rgb = names["raw"], names["camera_rgb"]
    assert camera_rgb.shape == (raw.height, raw.width, 3)
    assert (tmp_path / "runs" / "notebook" / "bundle" / "manifest.json").exists()


def test_every_config_that_is_run_there_validates() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "stillgrain run" in line]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command.split("#")[0])
        start = words.index("run") + 1
        read_config(ROOT / words[start], words[start + 1 :])


def test_every_job_that_is_submitted_there_is_taken(tmp_path: Path) -> None:
    """In their order, since one waits for another. A reader's own folder is one file here."""
    queue = ("--queue", tmp_path / "queue")
    pages = README + (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^stillgrain (submit .*)$", pages, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        words = command.split("#")[0].replace(
            "experiments/", "workloads/configs/denoise_rawnind.yaml storage=/shared/runs name=mine"
        )
        result = stillgrain(*shlex.split(words), *queue)
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    jobs = json.loads(stillgrain("queue", "status", "--json", *queue).stdout)["jobs"]
    assert {job["name"] for job in jobs} >= {"first", "infer", "demo-lr-1e-3-seed-0"}


def test_every_path_of_the_tree_exists() -> None:
    [tree] = re.findall(r"```\n(stillgrain\.py.*?)```", README, re.DOTALL)
    for line in tree.splitlines():
        parent = "library/" if line.startswith("  ") and not line.strip().startswith("configs") else ""
        parent = "workloads/" if line.strip().startswith("configs") else parent
        for word in re.match(r"\s*((?:[\w.]+/? )+)", line + " ").group(1).split():  # type: ignore[union-attr]
            assert (ROOT / parent / word).exists(), word


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
