from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from library.errors import CheckpointError
from library.files.atomic import whole_folder
from library.files.places import place
from library.models import nafnet, unet
from library.models.blocks.image_model import ImageModel
from library.training.checkpoint import (
    BestValue,
    Progress,
    checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from library.training.optim import OptimConfig

PROGRESS = Progress(
    step=3,
    best={"val/psnr": BestValue(2, 31.25), "val/l1": BestValue(3, 0.1)},
    lr_scale=0.85**3,
    patience_start=2,
    skipped_steps=1,
    stopped="val/psnr had no new best for 1 steps",
)


def fresh(seed: int = 0, width: int = 2) -> tuple[ImageModel, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nafnet.Config(width=width).build().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model, OptimConfig().build(model)


def average_of(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 0.3).square().mean().backward()
    optimizer.step()


def trained(updates: int = 3) -> tuple[ImageModel, torch.optim.Optimizer]:
    model, optimizer = fresh()
    for seed in range(updates):
        update(model, optimizer, seed)
    return model, optimizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_checkpoint(folder, *trained(), PROGRESS)
    return folder


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        state |= {f"{index} {name}": value.clone() for name, value in entry.items()}
    return state


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_a_state_comes_back_bit_for_bit(checkpoint: Path):
    model, optimizer = fresh(seed=9)
    assert load_checkpoint(checkpoint, model, optimizer) == PROGRESS
    assert_same(state_of(model, optimizer), state_of(*trained()))


def test_training_goes_on_as_if_it_had_never_stopped(checkpoint: Path):
    model, optimizer = fresh(seed=9)
    load_checkpoint(checkpoint, model, optimizer)
    undisturbed = trained()
    for seed in range(3, 6):
        update(model, optimizer, seed)
        update(*undisturbed, seed)
    assert_same(state_of(model, optimizer), state_of(*undisturbed))


def test_a_moving_average_comes_back_bit_for_bit_and_goes_on(tmp_path: Path):
    model, optimizer = trained()
    average = average_of(model)
    for seed in range(3, 5):
        update(model, optimizer, seed)
        average.update_parameters(model)
    save_checkpoint(tmp_path, model, optimizer, PROGRESS, average)
    other, other_optimizer = fresh(seed=9)
    other_average = average_of(other)
    assert load_checkpoint(tmp_path, other, other_optimizer, other_average) == PROGRESS
    assert_same(average.state_dict(), other_average.state_dict())
    assert_same(model.state_dict(), other.state_dict())
    assert any(not torch.equal(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))
    for m, o, mean in ((model, optimizer, average), (other, other_optimizer, other_average)):
        update(m, o, seed=5)
        mean.update_parameters(m)
    assert_same(average.state_dict(), other_average.state_dict())


def test_a_checkpoint_without_the_average_that_is_asked_for_is_refused(checkpoint: Path):
    """It would go on from an average that never was."""
    model, optimizer = fresh()
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_checkpoint(checkpoint, model, optimizer, average_of(model))


def test_weights_keep_the_layout_of_the_model_they_are_loaded_into(checkpoint: Path):
    model, optimizer = fresh(seed=9)
    load_checkpoint(checkpoint, model, optimizer)
    weights = [p for p in model.parameters() if p.ndim == 4]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    assert all(p.requires_grad for p in model.parameters())


def test_the_settings_of_the_optimizer_come_from_the_config_not_the_file(checkpoint: Path):
    model, _ = fresh()
    optimizer = OptimConfig(lr=0.5, weight_decay=0.25, lr_multipliers={"head": 4.0}).build(model)
    load_checkpoint(checkpoint, model, optimizer)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25, 0.0}
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert {group["lr_multiplier"] for group in optimizer.param_groups} == {1.0, 4.0}


def test_a_state_before_the_first_update_comes_back(tmp_path: Path):
    save_checkpoint(tmp_path, *fresh(), Progress())
    model, optimizer = fresh(seed=9)
    assert load_checkpoint(tmp_path, model, optimizer) == Progress()
    assert_same(state_of(model, optimizer), state_of(*fresh()))


def test_the_same_state_gives_the_same_bytes_and_none_is_a_pickle(checkpoint: Path, tmp_path: Path):
    save_checkpoint(tmp_path, *trained(), PROGRESS)
    names = sorted(path.name for path in checkpoint.iterdir())
    assert names == ["state.json", "tensors.safetensors"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (checkpoint / name).read_bytes()


def test_the_progress_can_be_read_alone_also_when_the_tensors_are_gone(checkpoint: Path):
    assert read_progress(checkpoint) == PROGRESS
    (checkpoint / "tensors.safetensors").unlink()
    assert read_progress(checkpoint) == PROGRESS


def test_a_damaged_state_is_refused_also_when_it_is_read_alone(checkpoint: Path):
    """One flipped bit in a key was a TypeError."""
    file = checkpoint / "state.json"
    whole = file.read_bytes()
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        file.write_bytes(damaged)
        try:
            read_progress(checkpoint)
        except CheckpointError:
            refused += 1
    assert refused > len(whole) / 2


@pytest.mark.parametrize("store", ["", "memory:/"])
def test_the_checkpoints_of_a_run_are_its_whole_ones_by_step(store: str, tmp_path: Path, checkpoint: Path):
    """One whose state, which is written last, is missing is being written, or was never finished."""
    run = place(f"{store}{tmp_path}/run")
    assert checkpoints(run) == []
    for step in (100, 9, 20):
        with whole_folder(run / "checkpoints" / f"step-{step:08d}") as temporary:
            shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
    for name in ("step-00000200", ".step-00000300.abc.tmp", "notes"):
        with whole_folder(run / "checkpoints" / name) as temporary:
            (temporary / "tensors.safetensors").write_bytes(b"half")
    with whole_folder(run / "checkpoints" / ".step-00000300.abc.tmp") as temporary:
        shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
    assert [c.name for c in checkpoints(run)] == ["step-00000009", "step-00000020", "step-00000100"]
    assert checkpoints(str(run)) == checkpoints(run)
    model, optimizer = fresh(seed=9)
    assert load_checkpoint(checkpoints(run)[-1], model, optimizer) == PROGRESS
    assert read_progress(checkpoints(run)[0]) == PROGRESS
    assert_same(state_of(model, optimizer), state_of(*trained()))


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_changed_byte_anywhere_is_noticed(checkpoint: Path, name: str):
    """Also in the progress: a run could go on from a step at which it never was."""
    file = checkpoint / name
    whole = file.read_bytes()
    accepted = []
    for position in {round(i * (len(whole) - 1) / 39) for i in range(40)}:
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        file.write_bytes(damaged)
        try:
            if load_checkpoint(checkpoint, *fresh()) != PROGRESS:
                accepted.append(position)
        except CheckpointError:
            continue
    assert accepted == []


def test_a_changed_step_is_noticed(checkpoint: Path):
    state = json.loads((checkpoint / "state.json").read_text())
    state["progress"]["step"] = 4
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(checkpoint, *fresh())


@pytest.mark.parametrize("content", [None, "", "{", "[]", "5", "{}", '{"format": 1}'])
def test_what_is_no_whole_checkpoint_is_refused_with_the_remedy(checkpoint: Path, content: str | None):
    (checkpoint / "state.json").unlink()
    if content is not None:
        (checkpoint / "state.json").write_text(content)
    remedy = r"is not a whole checkpoint.*delete it to go on from the one before"
    with pytest.raises(CheckpointError, match=remedy):
        load_checkpoint(checkpoint, *fresh())
    with pytest.raises(CheckpointError, match=remedy):
        read_progress(checkpoint)


def test_missing_and_cut_tensors_are_refused(checkpoint: Path):
    file = checkpoint / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(checkpoint, *fresh())
    file.unlink()
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        load_checkpoint(checkpoint, *fresh())


def test_a_checkpoint_of_another_format_says_which(checkpoint: Path):
    state = json.loads((checkpoint / "state.json").read_text()) | {"format": 99}
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="has format 99, and this version reads format 2"):
        load_checkpoint(checkpoint, *fresh())


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path):
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_checkpoint(checkpoint, *fresh(width=4))
    model = unet.Config(funit=1).build()
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_checkpoint(checkpoint, model, OptimConfig().build(model))
