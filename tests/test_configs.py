"""Every shipped YAML validates, and every training among them runs two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.bundle import load_bundle
from library.config import load, to_yaml, validate
from library.files.atomic import whole_file
from workloads.run import read_config, run

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "workloads" / "configs").glob("*.yaml"))
# On pairs there is nothing to train before they are prepared: tests/workloads/test_rawnind_story.py does both.
TRAININGS = [
    path for path in CONFIGS if load(path).get("workload") == "denoise" and load(path)["dataset"]["kind"] == "synthetic"
]


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_shipped_config_validates_and_its_resolved_form_means_the_same(path: Path, tmp_path: Path) -> None:
    config = read_config(path)
    with whole_file(tmp_path / "resolved.yaml") as temporary:
        temporary.write_text(to_yaml(config))
    assert read_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_shipped_config_says_how_to_run_it(path: Path) -> None:
    assert f"stillgrain run workloads/configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", TRAININGS, ids=name_of)
def test_a_shipped_training_runs_two_steps(path: Path, tmp_path: Path) -> None:
    words = ["steps=2", "log_every=1", "validate_every=2", "checkpoint_every=2", "batch_size=2", "scaling.workers=0"]
    result = run(read_config(path, [*words, f"storage={tmp_path}"]))
    assert result.metrics.keys() == {"val/psnr", "val/psnr.linear", "val/ms_ssim"}
    assert load_bundle(result.bundle).manifest["step"] == 2


def test_two_configs_in_one_process_do_not_leak_into_each_other(scenes: Path, tmp_path: Path) -> None:
    """Two runs, interleaved as far as one process allows: built alternately, then trained in turn."""
    data = load(CONFIGS[0].parent / "denoise_demo.yaml")
    from workloads import denoise

    configs = []
    for width in (4, 6):
        changed = {**data, "model": {"kind": "nafnet", "width": width}, "name": f"w{width}", "storage": str(tmp_path)}
        configs.append(validate(denoise.Config, changed, "test"))
    models = [config.model.build() for config in (*configs, *configs)]
    assert [m.config.width for m in models] == [4, 6, 4, 6]
    assert models[0].num_parameters == models[2].num_parameters < models[1].num_parameters
