"""Training runs from config to folder, in this process: stages, starting weights, gain policies, what may change."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from library.bundle import load_bundle
from library.config import validate
from library.errors import BundleError, ConfigError, StillgrainError
from library.files.raw import read_raw
from library.inference.denoise import denoise_raw
from library.inference.engine import Engine
from library.training.checkpoint import checkpoints, read_progress
from library.training.recorder import read_metrics
from workloads import denoise
from workloads.launch import RunResult
from workloads.run import run


def settings(scenes: Path, storage: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
    return {
        "workload": "denoise",
        "name": name,
        "storage": str(storage),
        "model": {"kind": "nafnet", "width": 4},
        "dataset": {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 168},
        "losses": {"l1": {"weight": 1.0}},
        "batch_size": 2,
        "optim": {"lr": 5e-3},
        "steps": 4,
        "log_every": 1,
        "validate_every": 4,
        "checkpoint_every": 4,
        "num_pictures": 1,
        "scaling": {"workers": 0},
        **changes,
    }


def train(data: dict[str, Any]) -> RunResult:
    return run(validate(denoise.Config, data, "test"))


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.bundle / "model.safetensors")


@pytest.fixture(scope="module")
def first(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train(settings(scenes, tmp_path_factory.mktemp("first")))


# --- starting from another run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["run", "bundle"])
def test_a_run_begins_with_the_weights_of_a_bundle_under_another_loss_weight(
    where: str, first: RunResult, scenes: Path, tmp_path: Path
) -> None:
    """A rung of a ladder: with a rate of next to nothing it ends where its neighbour did."""
    start = first.folder if where == "run" else first.bundle
    rung = settings(scenes, tmp_path, start_from=str(start), losses={"l1": {"weight": 2.0}}, optim={"lr": 1e-12})
    ours, theirs = weights(train(rung)), weights(first)
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-8) for name in theirs)
    fresh = weights(train(settings(scenes, tmp_path / "fresh", optim={"lr": 1e-12})))
    assert not all(torch.allclose(fresh[name], theirs[name], rtol=0, atol=1e-8) for name in theirs)


def test_a_run_that_goes_on_no_longer_needs_what_it_started_from(
    first: RunResult, scenes: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "neighbour"
    copy.mkdir()
    for file in first.bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = settings(scenes, tmp_path, start_from=str(copy))
    train(data)
    for file in copy.iterdir():
        file.unlink()
    assert train(data).metrics


def test_the_weights_of_another_model_are_refused_with_the_difference(
    first: RunResult, scenes: Path, tmp_path: Path
) -> None:
    data = settings(scenes, tmp_path, start_from=str(first.folder), model={"kind": "nafnet", "width": 6})
    with pytest.raises(ConfigError, match=r"start_from: .* another model: model\.width is 6 here and 4 there"):
        train(data)


def test_a_start_that_is_not_there_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: does not exist"):
        train(settings(scenes, tmp_path, start_from=str(tmp_path / "nowhere")))


# --- stages -----------------------------------------------------------------------------------------------------------


def test_a_later_stage_trains_on_under_its_changes(first: RunResult, scenes: Path, tmp_path: Path) -> None:
    """The first stage is the run without the second; what is frozen in the second stays as the first left it."""
    stage = {"steps": 3, "changes": {"dataset.crop": 48, "losses.l1.weight": 0.5, "frozen": ["encoder", "middle"]}}
    result = train(settings(scenes, tmp_path, then=[stage], retention={"last": 9}))
    assert [c.name for c in checkpoints(result.folder)] == ["step-00000004", "step-00000007"]
    before, after = (load_file(c / "tensors.safetensors") for c in checkpoints(result.folder))
    ours, theirs = read_metrics(result.folder), read_metrics(first.folder)
    assert [x for x in ours if x["step"] <= 4] == theirs
    changed = {name for name in before if name.startswith("model.") and not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith(("model.intro", "model.encoder", "model.middle")) for name in changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset.scenes": "elsewhere"},
            r"then\.0\.changes: 'dataset\.scenes' cannot change within a run; what can: ",
        ),
        ({"optim.lrr": 1.0}, r"stage 1: optim\.lrr: unknown key; did you mean 'lr'"),
        ({"dataset.crop": 30}, r"stage 1: dataset\.crop is 30.*multiple of"),
        ({"frozen": ["brain"]}, r"stage 1: frozen names brain, .* the parts encoder, middle, decoder, head"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(denoise.Config, settings(scenes, tmp_path, then=[{"steps": 2, "changes": changes}]), "test")


# --- gain -------------------------------------------------------------------------------------------------------------


def test_a_bundle_trained_to_match_its_target_denoises_at_the_raws_brightness(
    scenes: Path, raw_dng: Path, tmp_path: Path
) -> None:
    """The recipe's policy: the network may learn any gain, so its bundle says so and the raw's is taken instead."""
    result = train(settings(scenes, tmp_path, gain="match_target"))
    bundle = load_bundle(result.bundle)
    assert bundle.gain == "arbitrary"
    raw = read_raw(raw_dng)
    camera_rgb = denoise_raw(raw, Engine(bundle))
    level = (raw.mosaic.astype(float) - 512) / (16383 - 512)
    assert camera_rgb.mean() == pytest.approx(level.mean(), rel=0.02)


@pytest.mark.parametrize("gain", ["match_target", "match_input"])
def test_every_gain_policy_trains_and_validates(gain: str, scenes: Path, tmp_path: Path) -> None:
    assert train(settings(scenes, tmp_path, gain=gain)).metrics["val/psnr"] > 5


# --- the folder -------------------------------------------------------------------------------------------------------


def test_tags_and_notes_may_change_and_those_of_the_folder_stay(first: RunResult, scenes: Path, tmp_path: Path) -> None:
    data = settings(scenes, tmp_path)
    train({**data, "tags": ["paper"], "notes": "the first"})
    result = train({**data, "tags": ["good"]})
    kept = yaml.safe_load((result.folder / "run.yaml").read_text())
    assert (kept["tags"], kept["notes"]) == (["paper", "good"], "the first")


def test_the_same_name_with_another_config_is_refused_with_the_difference(first: RunResult, scenes: Path) -> None:
    data = settings(scenes, first.folder.parent, optim={"lr": 1e-3})
    with pytest.raises(ConfigError, match=r"(?s)another config.*-  lr: 0\.005.*\+  lr: 0\.001"):
        train(data)


def test_a_run_moved_from_a_full_disk_goes_on_there_to_the_same_bits(
    first: RunResult, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the error advises was once refused: the folder's run.yaml named the storage that it was moved from."""
    full, roomy = tmp_path / "full", tmp_path / "roomy"
    rename = os.rename

    def fills_up(source: Path, target: Path) -> None:
        if target.name == "step-00000004":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as disk:
        disk.setattr(os, "rename", fills_up)
        with pytest.raises(StillgrainError, match=r"move the run's folder into another .* as storage="):
            train(settings(scenes, full, checkpoint_every=2))
    roomy.mkdir()
    (full / "run").rename(roomy / "run")
    assert [c.name for c in checkpoints(roomy / "run")] == ["step-00000002"]
    result = train(settings(scenes, roomy, checkpoint_every=2))
    assert result.folder == roomy / "run"
    for file in ("metrics.jsonl", "bundle/model.safetensors", "checkpoints/step-00000004/state.json"):
        assert (result.folder / file).read_bytes() == (first.folder / file).read_bytes()
    assert yaml.safe_load((result.folder / "run.yaml").read_text())["storage"] == str(roomy)
    assert not (full / "run").exists()


def test_a_run_that_stopped_early_says_so_and_is_left_as_it_is(scenes: Path, tmp_path: Path) -> None:
    # At a rate of next to nothing nothing improves after the first validation.
    data = settings(
        scenes,
        tmp_path,
        steps=40,
        validate_every=2,
        checkpoint_every=2,
        early_stop={"patience": 4},
        optim={"lr": 1e-30},
    )
    result = train(data)
    assert result.stopped == "val/psnr had no new best for 4 steps"
    assert "stopped early" in str(result)
    before = (result.folder / "metrics.jsonl").read_bytes()
    assert train(data).stopped == result.stopped
    assert (result.folder / "metrics.jsonl").read_bytes() == before
    assert read_progress(checkpoints(result.folder)[-1]).step == 6


def test_a_storage_that_nobody_knows_is_refused_with_the_remedy(scenes: Path) -> None:
    with pytest.raises(ConfigError, match=r"storage 'nowhere://runs' cannot be used.*stillgrain\[s3\]"):
        train({**settings(scenes, Path("x")), "storage": "nowhere://runs"})


def test_a_run_in_memory_is_the_run_on_disk(first: RunResult, scenes: Path, tmp_path: Path) -> None:
    """Nothing but the storage is shared, so nothing of a run may lie beside it."""
    result = train({**settings(scenes, tmp_path), "storage": f"memory:/{tmp_path}"})
    assert (result.folder / "metrics.jsonl").read_text() == (first.folder / "metrics.jsonl").read_text()
    assert load_bundle(result.bundle).manifest["sha256"] == load_bundle(first.bundle).manifest["sha256"]
    assert (result.folder / "report.html").exists()
    assert list(tmp_path.iterdir()) == []
