from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from upath import UPath

from library.bundle import load_bundle, write_bundle
from library.config import validate
from library.datasets import synthetic
from library.datasets.batch import Batch
from library.datasets.sensors import ParametricSensor
from library.errors import ConfigError, StillgrainError
from library.files.places import place
from library.losses import l1
from library.metrics import psnr
from library.models import nafnet
from library.models.blocks.image_model import ImageModel
from library.training.checkpoint import BestValue, Progress, checkpoints, load_checkpoint
from library.training.loop import Best, EarlyStop, LaterStage, MovingAverage, Retention, TrainingConfig, fit
from library.training.objective import Objective
from library.training.optim import OptimConfig, Plateau
from library.training.recorder import METRICS_FILE, Recorder, read_metrics
from library.training.world import World

NOISY = ParametricSensor(shot=(3e-2, 3e-2), read_scatter=0)


class Config(TrainingConfig):
    """As a workload has it: with settings of the data, some of which a stage may change."""

    stage_keys: ClassVar[tuple[str, ...]] = (*TrainingConfig.stage_keys, "crop")

    crop: int = 32


CONFIG = Config(
    steps=12,
    batch_size=2,
    optim=OptimConfig(lr=1e-3, warmup_steps=2),
    log_every=2,
    validate_every=4,
    checkpoint_every=6,
)


class Denoising:
    """A small denoiser over a few scenes: a whole task, as the workload has it."""

    def __init__(self, config: Config, model: ImageModel, prepared: Path, run_folder: Path | UPath) -> None:
        self.config = config
        self.model = model
        self.run_folder = place(run_folder)
        self.objective = Objective({"l1": l1.Config()}, "srgb")
        data = synthetic.Config(crop=config.crop, validation_crop=176, sensor=NOISY)
        self.dataset = data.open(prepared, config.seed)
        self.losses_seen: list[float] = []
        self.validated: list[bool] = []
        """Whether the model was in training mode, at each validation."""
        self.published: list[int] = []

    def batch(self, step: int, slots: range) -> Batch:
        return self.dataset.batch(step, slots, batch_size=self.config.batch_size)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses = self.objective(network(batch.noisy), batch)
        self.losses_seen.append(float(losses["loss"].detach()))
        return losses

    @torch.no_grad()
    def validate(self, model: ImageModel, world: World) -> dict[str, float]:
        self.validated.append(model.training)
        _, item = self.dataset.validation_item(0)
        return {"val/psnr": float(psnr(model(item.noisy), item.clean, item.mask))}

    def publish(self, model: ImageModel, world: World, step: int, metrics: dict[str, float]) -> None:
        self.published.append(step)
        if world.leads:
            write_bundle(
                self.run_folder / "bundle",
                model,
                name="test",
                training=self.config.model_dump(mode="json"),
                data_digest=self.dataset.digest,
                metrics=metrics,
                step=step,
            )


def tasks_of(
    config: Config, prepared: Path, run_folder: Path | UPath, make: Callable[..., Denoising] = Denoising
) -> list[Denoising]:
    """A run's stages, which share a model."""
    torch.manual_seed(config.seed)
    model = nafnet.Config(width=4).build()
    return [make(stage, model, prepared, run_folder) for stage in config.stages]


def task_of(
    config: Config, prepared: Path, run_folder: Path | UPath, make: Callable[..., Denoising] = Denoising
) -> Denoising:
    (task,) = tasks_of(config, prepared, run_folder, make)
    return task


@pytest.fixture(scope="session")
def prepared(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.Config(scenes=str(scenes)).prepare(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Denoising]:
    folder = tmp_path_factory.mktemp("undisturbed")
    task = task_of(CONFIG, prepared, folder)
    assert fit([task], Recorder(folder)).step == 12
    return folder, task


def logged(folder: Path | UPath, split: str) -> dict[str, dict[int, float]]:
    """Values of one split: by name, then by step."""
    values: dict[str, dict[int, float]] = {}
    for line in read_metrics(folder):
        if line["split"] == split:
            values.setdefault(line["name"], {})[line["step"]] = line["value"]
    return values


def recorded(folder: Path | UPath) -> dict[str, Any]:
    """Everything a run leaves that must not depend on whether it was interrupted, nor on where it is kept."""
    folder = place(folder)
    latest = checkpoints(folder)[-1]
    return {
        "metrics": (folder / METRICS_FILE).read_text(),
        "checkpoints": [path.name for path in checkpoints(folder)],
        "state": (latest / "state.json").read_text(),
        "tensors": (latest / "tensors.safetensors").read_bytes(),
        "bundle": json.loads((folder / "bundle" / "manifest.json").read_text())["digest"],
        "skipped": {path.name: path.read_bytes() for path in (folder / "skipped").glob("*")},
    }


class State:
    """What a checkpoint holds."""

    def __init__(self, config: Config, folder: Path, step: int) -> None:
        self.model = nafnet.Config(width=4).build()
        self.optimizer = config.optim.build(self.model)
        average = AveragedModel(self.model) if config.moving_average else None
        path = place(folder) / "checkpoints" / f"step-{step:08d}"
        self.progress = load_checkpoint(path, self.model, self.optimizer, average)
        self.weights = dict(self.model.named_parameters())
        self.average = dict(average.module.named_parameters()) if average else {}

    def optimizer_of(self, name: str) -> dict[str, Tensor]:
        return self.optimizer.state[self.weights[name]]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# --- what a run does --------------------------------------------------------------------------------------------------


def test_the_first_step_lowers_the_loss_on_its_batch(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"steps": 1, "optim": OptimConfig(lr=1e-4)})
    task = task_of(config, prepared, tmp_path)
    batch = task.batch(0, range(2))
    before = task.objective(task.model(batch.noisy), batch)["loss"]
    fit([task], Recorder(tmp_path))
    after = task.objective(task.model(batch.noisy), batch)["loss"]
    assert task.losses_seen[0] == pytest.approx(float(before.detach()), rel=1e-5)
    assert after < before


def test_forty_steps_teach_a_small_network_to_denoise(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(
        update={"steps": 40, "batch_size": 4, "validate_every": 20, "optim": OptimConfig(lr=1e-2, warmup_steps=5)}
    )
    task = task_of(config, prepared, tmp_path)
    before = task.validate(task.model, World())["val/psnr"]
    fit([task], Recorder(tmp_path))
    values = list(logged(tmp_path, "val")["psnr"].values())
    assert before + 0.5 < values[0] < values[1]
    assert math.fsum(task.losses_seen[-5:]) < 0.8 * math.fsum(task.losses_seen[:5])


def test_every_window_of_losses_is_logged_as_its_mean_with_the_rate_of_its_last_step(
    undisturbed: tuple[Path, Denoising],
):
    folder, task = undisturbed
    train = logged(folder, "train")
    assert train.keys() == {"loss", "l1", "lr"}
    assert list(train["loss"]) == [2, 4, 6, 8, 10, 12]
    for step, loss in train["loss"].items():
        assert loss == pytest.approx(math.fsum(task.losses_seen[step - 2 : step]) / 2)
        assert train["lr"][step] == CONFIG.optim.lr_at(step - 1, 12)
    assert train["l1"] == train["loss"]


def test_validation_comes_at_its_steps_in_evaluation_mode_and_the_best_is_published(
    undisturbed: tuple[Path, Denoising],
):
    folder, task = undisturbed
    values = logged(folder, "val")["psnr"]
    assert list(values) == [4, 8, 12]
    assert task.validated[:3] == [False, False, False]
    best = max(values, key=lambda step: values[step])
    assert task.published[-1] == best
    bundle = load_bundle(folder / "bundle")
    assert bundle.manifest["step"] == best
    assert bundle.manifest["metrics"] == {"val/psnr": values[best]}
    assert bundle.manifest["training"] == CONFIG.model_dump(mode="json")
    assert task.model.training


def test_the_bundle_gives_what_the_model_gave(undisturbed: tuple[Path, Denoising]):
    folder, task = undisturbed
    assert task.published[-1] == 12
    _, item = task.dataset.validation_item(0)
    noisy = item.noisy.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(load_bundle(folder / "bundle").model(noisy), task.model.eval()(noisy))
    task.model.train()


def test_every_validation_is_reported_to_whoever_started_the_workers(prepared: Path, tmp_path: Path):
    reports = []
    world = World(report=lambda step, metrics: reports.append((step, dict(metrics))))
    fit([task_of(CONFIG.model_copy(update={"steps": 5}), prepared, tmp_path)], Recorder(tmp_path), world)
    values = logged(tmp_path, "val")["psnr"]
    assert list(values) == [4, 5]
    assert reports == [(step, {"val/psnr": value}) for step, value in values.items()]


def test_the_last_step_is_logged_validated_and_kept_though_no_interval_ends_there(prepared: Path, tmp_path: Path):
    fit([task_of(CONFIG.model_copy(update={"steps": 5}), prepared, tmp_path)], Recorder(tmp_path))
    steps = {(line["step"], line["split"]) for line in read_metrics(tmp_path)}
    assert steps == {(2, "train"), (4, "train"), (4, "val"), (5, "train"), (5, "val")}
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]


def test_a_network_in_bfloat16_learns_too_and_keeps_float32_weights(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"steps": 4})
    task = task_of(config.model_copy(update={"precision": "bf16"}), prepared, tmp_path)
    exact = task_of(config, prepared, tmp_path / "exact")
    fit([task], Recorder(tmp_path))
    fit([exact], Recorder(tmp_path / "exact"))
    assert all(p.dtype == torch.float32 for p in task.model.parameters())
    assert task.losses_seen[0] == pytest.approx(exact.losses_seen[0], rel=1e-2)
    assert task.losses_seen[1:] != exact.losses_seen[1:]


# --- a run with everything at once ------------------------------------------------------------------------------------

EVERYTHING = Config(
    steps=10,
    batch_size=2,
    optim=OptimConfig(
        lr=1e-3,
        lr_multipliers={"head": 2.0},
        warmup_steps=2,
        weight_decay=0.1,
        schedule=Plateau(patience=4, factor_per_decay=0.5),
    ),
    moving_average=MovingAverage(decay=0.7),
    log_every=2,
    validate_every=4,
    checkpoint_every=2,
    early_stop=EarlyStop(patience=12),
    retention=Retention(best=True),
    then=(LaterStage(steps=20, changes={"crop": 48, "batch_size": 3, "optim.lr": 5e-4, "frozen": ["encoder"]}),),
)
NO_NUMBER_AT = {5, 17}
"""Steps, one in each stage, whose batches hold a NaN."""


class Everything(Denoising):
    """Its validation says what a script has for that place in the run, and dies where it is told to."""

    # PSNR and l1 at steps 4, 8 and 10, then at 12, 16, 20 and 24 of the second stage. The rate is lowered after 8, 16
    # and 20.
    script: tuple[tuple[float, float], ...] = (
        (22, 0.1), (21, 0.2), (21, 0.2), (23, 0.2), (22, 0.3), (23, 0.2), (22, 0.1)
    )  # fmt: skip
    dies_at: tuple[str, int] | None = None
    """An update of the stage, counted from 1; a batch, or a publication, by its step."""

    def _live(self, event: str, number: int) -> None:
        if self.dies_at == (event, number):
            raise Killed

    def batch(self, step: int, slots: range) -> Batch:
        self._live("batch", step)
        batch = super().batch(step, slots)
        if step in NO_NUMBER_AT:
            batch.noisy[0, 0, 3, 3] = math.nan
        return batch

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self._live("update", len(self.losses_seen) + 1)
        return super().losses(network, batch)

    def validate(self, model: ImageModel, world: World) -> dict[str, float]:
        self.validated.append(model.training)
        before = {line["step"] for line in read_metrics(self.run_folder) if line["split"] == "val"}
        return dict(zip(("val/psnr", "val/l1"), self.script[len(before)], strict=True))

    def publish(self, model: ImageModel, world: World, step: int, metrics: dict[str, float]) -> None:
        self._live("publish", step)
        super().publish(model, world, step, metrics)


class Killed(Exception):
    """Stands for a worker that is preempted."""


class KilledAtCommit(Recorder):
    def __init__(self, folder: Path | UPath, step: int) -> None:
        super().__init__(folder)
        self.killed_at = step

    def commit(self, step: int, write: Callable[[Path], None], **settings: Any) -> None:
        if step == self.killed_at:
            raise Killed
        super().commit(step, write, **settings)


@pytest.fixture(scope="session")
def everything(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Denoising], Progress]:
    folder = tmp_path_factory.mktemp("everything")
    tasks = tasks_of(EVERYTHING, prepared, folder, Everything)
    return folder, tasks, fit(tasks, Recorder(folder))


Whole = tuple[Path, list[Denoising], Progress]


def test_stages_follow_each_other_with_their_own_batches(everything: Whole):
    _, (first, second), progress = everything
    assert (len(first.losses_seen), len(second.losses_seen)) == (10, 14)
    assert [len(stage.batch(10, range(n)).noisy[0, 0]) for stage, n in ((first, 2), (second, 3))] == [16, 24]
    assert progress.step == 24


def test_the_rate_is_each_stages_own_warmed_up_anew_and_lowered_on_a_plateau_only(everything: Whole):
    """By the factor exactly, once for each patience in optimizer steps; a new stage starts at its full rate."""
    folder, _, _ = everything
    expected = {}
    for step in range(2, 25, 2):
        start, peak = (0, 1e-3) if step <= 10 else (10, 5e-4)
        warmup = min(1.0, (step - start) / 3)
        num_decays = (8 < step <= 10) + (step > 16) + (step > 20)
        expected[step] = peak * warmup * 0.5**num_decays
    assert logged(folder, "train")["lr"] == pytest.approx(expected)


def test_the_best_of_every_metric_is_known_with_its_step_and_its_own_direction(everything: Whole):
    folder, (first, second), progress = everything
    assert progress.best == {"val/psnr": BestValue(12, 23.0), "val/l1": BestValue(4, 0.1)}
    assert (first.published, second.published) == ([4], [12])
    assert load_bundle(folder / "bundle").manifest["step"] == 12


def test_the_newest_checkpoints_are_kept_and_those_of_the_best_steps(everything: Whole):
    folder, _, _ = everything
    assert [int(path.name[5:]) for path in checkpoints(folder)] == [4, 12, 22, 24]


def test_without_new_bests_the_run_ends_early_and_says_why(everything: Whole):
    _, _, progress = everything
    assert progress.stopped == "val/psnr had no new best for 12 steps"
    assert progress.step == 24 < EVERYTHING.total_steps


def test_a_run_that_stopped_early_is_left_as_it_is(everything: Whole, prepared: Path):
    folder, _, progress = everything
    before = recorded(folder)
    tasks = tasks_of(EVERYTHING, prepared, folder, Everything)
    assert fit(tasks, Recorder(folder)) == progress
    assert [task.losses_seen + task.published + task.validated for task in tasks] == [[], []]
    assert recorded(folder) == before


@pytest.mark.parametrize(
    ("stage", "event", "number"),
    [
        (0, "update", 1),
        (0, "update", 6),  # whose batch is no number
        (0, "batch", 8),
        (0, "publish", 4),
        (0, "commit", 8),  # the rate has just been lowered
        (0, "commit", 10),  # the first stage has ended
        (1, "update", 1),
        (1, "publish", 12),
        (1, "batch", 19),
        (1, "commit", 20),
        (1, "commit", 24),  # it has just decided to stop
    ],
)
def test_a_run_that_was_killed_goes_on_as_if_it_never_had_been(
    stage: int, event: str, number: int, prepared: Path, tmp_path: Path, everything: Whole
):
    recorder = KilledAtCommit(tmp_path, number) if event == "commit" else Recorder(tmp_path)
    tasks = tasks_of(EVERYTHING, prepared, tmp_path, Everything)
    tasks[stage].dies_at = (event, number)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Killed):
        fit(tasks, recorder)
    recorder.close()
    progress = fit(tasks_of(EVERYTHING, prepared, tmp_path, Everything), Recorder(tmp_path))
    assert progress == everything[2]
    assert recorded(tmp_path) == recorded(everything[0])


def test_a_run_may_be_killed_again_and_again(prepared: Path, tmp_path: Path, everything: Whole):
    deaths = 0
    for _ in range(20):
        # No stage lives for more than three updates, one more than lie between two checkpoints.
        tasks = tasks_of(EVERYTHING, prepared, tmp_path, Everything)
        for task in tasks:
            task.dies_at = ("update", 4)  # pyright: ignore[reportAttributeAccessIssue]
        recorder = Recorder(tmp_path)
        try:
            fit(tasks, recorder)
            break
        except Killed:
            deaths += 1
            recorder.close()
    assert deaths == 10
    assert recorded(tmp_path) == recorded(everything[0])


def test_a_run_kept_in_an_object_store_leaves_the_same_though_it_was_killed(
    prepared: Path, tmp_path: Path, everything: Whole
):
    folder = place(f"memory:/{tmp_path}/run")
    tasks = tasks_of(EVERYTHING, prepared, folder, Everything)
    tasks[1].dies_at = ("update", 5)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Killed):
        fit(tasks, Recorder(folder))
    fit(tasks_of(EVERYTHING, prepared, folder, Everything), Recorder(folder))
    assert recorded(folder) == recorded(everything[0])
    assert list(tmp_path.iterdir()) == []


def test_the_random_numbers_of_the_process_do_not_matter(
    prepared: Path, tmp_path: Path, undisturbed: tuple[Path, Denoising]
):
    task = task_of(CONFIG, prepared, tmp_path)
    torch.rand(17)
    fit([task], Recorder(tmp_path))
    assert recorded(tmp_path) == recorded(undisturbed[0])


def test_another_seed_is_another_run(prepared: Path, tmp_path: Path, undisturbed: tuple[Path, Denoising]):
    config = CONFIG.model_copy(update={"seed": 1})
    fit([task_of(config, prepared, tmp_path)], Recorder(tmp_path))
    assert recorded(tmp_path)["tensors"] != recorded(undisturbed[0])["tensors"]


def test_a_finished_run_is_left_as_it_is(prepared: Path, undisturbed: tuple[Path, Denoising]):
    folder, _ = undisturbed
    before = recorded(folder)
    task = task_of(CONFIG, prepared, folder)
    progress = fit([task], Recorder(folder))
    assert (progress.step, progress.stopped) == (12, None)
    assert task.losses_seen == task.validated == task.published == []
    assert recorded(folder) == before


# --- frozen parts and the moving average ------------------------------------------------------------------------------

EACH_STEP = Config(
    steps=3,
    batch_size=2,
    optim=OptimConfig(lr=1e-3, weight_decay=0.5),
    moving_average=MovingAverage(decay=0.7),
    log_every=1,
    validate_every=1,
    checkpoint_every=1,
    retention=Retention(last=100),
    then=(
        LaterStage(steps=3, changes={"frozen": ["encoder", "head"]}),
        LaterStage(steps=3, changes={"frozen": ["head"]}),
    ),
)
"""Every state of a run is kept. The encoder is frozen in the second stage of three."""


@pytest.fixture(scope="session")
def states(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, State]]:
    folder = tmp_path_factory.mktemp("states")
    tasks = tasks_of(EACH_STEP, prepared, folder)
    fit(tasks, Recorder(folder))
    return folder, {step: State(EACH_STEP, folder, step) for step in range(1, 10)}


def names_of(part: str, state: State) -> list[str]:
    (group,) = (group for group in state.model.parameter_groups() if group.name == part)
    members = {id(p) for p in group.parameters}
    return [name for name, p in state.weights.items() if id(p) in members]


def test_frozen_parts_keep_every_bit_and_train_before_and_after(states: tuple[Path, dict[int, State]]):
    """Weight decay does not reach them either."""
    _, at = states
    frozen = {"encoder": {4, 5, 6}, "head": set(range(4, 10)), "middle": set(), "decoder": set()}
    for part, steps in frozen.items():
        names = names_of(part, at[1])
        assert names
        for step in range(3, 10):
            kept = [torch.equal(at[step].weights[name], at[step - 1].weights[name]) for name in names]
            assert all(kept) if step in steps else not any(kept), (part, step)


def test_the_optimizer_state_of_frozen_parts_waits_for_them(states: tuple[Path, dict[int, State]]):
    _, at = states
    for name in names_of("encoder", at[1]):
        assert same(at[6].optimizer_of(name), at[3].optimizer_of(name))
        assert [int(at[step].optimizer_of(name)["step"]) for step in (3, 6, 7)] == [3, 3, 4]
        assert not torch.equal(at[7].optimizer_of(name)["exp_avg"], at[6].optimizer_of(name)["exp_avg"])
    for name in names_of("middle", at[1]):
        assert int(at[9].optimizer_of(name)["step"]) == 9


def test_the_moving_average_is_that_of_the_weights_after_each_step(states: tuple[Path, dict[int, State]]):
    _, at = states
    expected = {name: weight.detach().double() for name, weight in at[1].weights.items()}
    for step in range(1, 10):
        if step > 1:
            expected = {name: 0.7 * mean + 0.3 * at[step].weights[name] for name, mean in expected.items()}
        for name, mean in expected.items():
            torch.testing.assert_close(at[step].average[name].detach().double(), mean.detach(), rtol=0, atol=1e-6)
    assert not any(torch.equal(at[3].average[name], at[3].weights[name]) for name in names_of("encoder", at[3]))


def test_the_average_is_validated_and_published_and_the_weights_themselves_trained_on(
    states: tuple[Path, dict[int, State]], prepared: Path
):
    folder, at = states
    values = logged(folder, "val")["psnr"]
    task = Denoising(EACH_STEP, at[9].model, prepared, folder)
    for step in (1, 5, 9):
        judged = nafnet.Config(width=4).build()
        judged.load_state_dict(at[step].average)
        judged.to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        assert task.validate(judged, World())["val/psnr"] == values[step]
    assert task.validate(at[5].model.eval(), World())["val/psnr"] != pytest.approx(values[5], rel=1e-6)
    best = max(values, key=lambda step: values[step])
    bundle = load_bundle(folder / "bundle")
    assert bundle.manifest["step"] == best
    assert same(dict(bundle.model.named_parameters()), at[best].average)


# --- bests, plateaus, retention ---------------------------------------------------------------------------------------


class ByStep(Denoising):
    """Learns nothing of note; its validation says what a script has."""

    script: ClassVar[list[dict[str, float]]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.remaining = iter(self.script)

    def validate(self, model: ImageModel, world: World) -> dict[str, float]:
        return {f"val/{name}": value for name, value in next(self.remaining).items()}

    def publish(self, model: ImageModel, world: World, step: int, metrics: dict[str, float]) -> None:
        self.published.append(step)


def scripted(prepared: Path, folder: Path, config: Config, **values: list[float]) -> tuple[ByStep, Progress]:
    """A run whose validations give these values in turn."""

    class Script(ByStep):
        script: ClassVar = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    task = task_of(config, prepared, folder, Script)
    assert isinstance(task, ByStep)
    return task, fit([task], Recorder(folder))


EACH_TWO = CONFIG.model_copy(update={"validate_every": 2, "checkpoint_every": 2})


def test_the_best_may_be_the_smallest_and_only_a_better_one_is_published(prepared: Path, tmp_path: Path):
    config = EACH_TWO.model_copy(update={"best": Best(metric="val/loss", mode="min")})
    task, progress = scripted(
        prepared, tmp_path, config, loss=[3.0, 5.0, 5.0, 1.0, 2.0, 1.0], psnr=[1.0, 3.0, 2.0, 3.0, 2.5, 3.1]
    )
    assert task.published == [2, 8]
    assert progress.best == {"val/loss": BestValue(8, 1.0), "val/psnr": BestValue(12, 3.1)}


def test_any_metrics_new_best_extends_the_patience_of_a_plateau(prepared: Path, tmp_path: Path):
    """Also when it is not the one that is published for, and in its own direction."""
    optim = OptimConfig(lr=1.0e-3, schedule=Plateau(patience=4, factor_per_decay=0.85))
    config = EACH_TWO.model_copy(update={"optim": optim, "steps": 16})
    _, progress = scripted(
        prepared,
        tmp_path,
        config,
        psnr=[20.0, 19.0, 19.0, 19.0, 19.0, 19.0, 19.0, 19.0],
        l1=[0.5, 0.4, 0.3, 0.6, 0.7, 0.6, 0.6, 0.2],
    )
    # The last new best is at 6; four steps later, at 10, the rate falls; four steps on, at 14, again; at 16 a new best.
    rates = [1.0] * 5 + [0.85, 0.85, 0.85**2]
    expected = {step: 1e-3 * rate for step, rate in zip(range(2, 17, 2), rates, strict=True)}
    assert logged(tmp_path, "train")["lr"] == pytest.approx(expected, rel=1e-12)
    assert (progress.lr_scale, progress.patience_start) == (pytest.approx(0.85**2), 16)


def test_only_the_published_metric_counts_for_an_early_stop(prepared: Path, tmp_path: Path):
    config = EACH_TWO.model_copy(update={"early_stop": EarlyStop(patience=6)})
    _, progress = scripted(
        prepared, tmp_path, config, psnr=[20.0, 21.0, 20.9, 21.0, 20.0, 0.0], l1=[0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )
    assert (progress.step, progress.stopped) == (10, "val/psnr had no new best for 6 steps")
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000008", "step-00000010"]


def test_checkpoints_of_steps_that_are_the_best_no_longer_are_removed(prepared: Path, tmp_path: Path):
    config = EACH_TWO.model_copy(update={"retention": Retention(last=2, best=True), "steps": 14})
    scripted(
        prepared,
        tmp_path,
        config,
        psnr=[20.0, 23.0, 22.0, 24.0, 23.0, 23.0, 23.0],
        l1=[0.1, 0.2, 0.3, 0.2, 0.3, 0.3, 0.2],
    )
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [2, 8, 12, 14]


# --- steps that give no number ----------------------------------------------------------------------------------------


def _nan(task: Denoising, losses: dict[str, Tensor]) -> Tensor:
    return losses["loss"] * math.nan


def _infinite(task: Denoising, losses: dict[str, Tensor]) -> Tensor:
    return losses["loss"] * math.inf


def _infinite_with_a_finite_gradient(task: Denoising, losses: dict[str, Tensor]) -> Tensor:
    return losses["loss"] + math.inf


def _finite_with_a_gradient_that_is_none(task: Denoising, losses: dict[str, Tensor]) -> Tensor:
    return losses["loss"] + next(task.model.parameters()).mul(0).abs().sqrt().sum()


BROKEN_LOSSES = [_nan, _infinite, _infinite_with_a_finite_gradient, _finite_with_a_gradient_that_is_none]
SIX_STEPS = EACH_STEP.model_copy(update={"then": (), "steps": 6})


def breaking(how: Callable[[Denoising, dict[str, Tensor]], Tensor], *updates: int) -> type[Denoising]:
    """A task whose loss is broken at some updates, counted from 0."""

    class Breaking(Denoising):
        def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
            losses = super().losses(network, batch)
            if len(self.losses_seen) - 1 in updates:
                return {**losses, "loss": how(self, losses)}
            return losses

    return Breaking


@pytest.mark.parametrize("how", BROKEN_LOSSES)
def test_a_step_that_gives_no_number_changes_nothing_is_counted_and_the_run_goes_on(
    how: Callable, prepared: Path, tmp_path: Path
):
    """An infinite loss once passed with a gradient of zero: momentum and weight decay moved the weights."""
    task = task_of(SIX_STEPS, prepared, tmp_path, breaking(how, 3))
    progress = fit([task], Recorder(tmp_path))
    assert (progress.step, progress.skipped_steps) == (6, 1)
    at = {step: State(SIX_STEPS, tmp_path, step) for step in (3, 4, 5)}
    assert same(at[4].weights, at[3].weights)
    assert same(at[4].average, at[3].average)
    assert all(same(at[4].optimizer_of(name), at[3].optimizer_of(name)) for name in at[3].weights)
    assert [at[step].progress.skipped_steps for step in (3, 4, 5)] == [0, 1, 1]
    assert not same(at[5].weights, at[4].weights)
    assert all(bool(p.isfinite().all()) for p in task.model.parameters())
    train = logged(tmp_path, "train")
    assert train["skipped_steps"] == {4: 1.0, 5: 1.0, 6: 1.0}
    assert list(train["loss"]) == [1, 2, 3, 5, 6]


def test_a_skipped_step_has_no_part_in_the_mean_that_is_logged(prepared: Path, tmp_path: Path):
    task = task_of(CONFIG.model_copy(update={"steps": 4}), prepared, tmp_path, breaking(_nan, 2))
    fit([task], Recorder(tmp_path))
    assert logged(tmp_path, "train")["loss"][4] == pytest.approx(task.losses_seen[3])


def test_the_batch_of_a_skipped_step_is_kept_and_can_be_looked_at(prepared: Path, tmp_path: Path):
    task = task_of(SIX_STEPS, prepared, tmp_path, breaking(_nan, 3))
    fit([task], Recorder(tmp_path))
    (file,) = (tmp_path / "skipped").iterdir()
    assert file.name == "step-00000003-rank-0.safetensors"
    with safe_open(file, "pt") as content:
        about = json.loads(content.metadata()["about"])
    assert (about["step"], about["rank"], about["world_size"]) == (3, 0, 1)
    assert math.isnan(about["losses"]["loss"])
    assert about["losses"]["l1"] == task.losses_seen[3]
    assert same(load_file(file), task.batch(3, range(2)).tensors())


@pytest.mark.parametrize("how", BROKEN_LOSSES)
def test_one_skipped_step_more_than_allowed_ends_the_run_and_says_where_to_look(
    how: Callable, prepared: Path, tmp_path: Path
):
    config = SIX_STEPS.model_copy(update={"max_skipped_steps": 1})
    task = task_of(config, prepared, tmp_path, breaking(how, 1, 4))
    recorder = Recorder(tmp_path)
    said = (
        r"^step 4: .*'l1': 0\.\d+.* in 2 steps so far, more than max_skipped_steps \(1\); the data are finite: "
        rf"look at the batches in {tmp_path}/skipped,"
    )
    with pytest.raises(StillgrainError, match=said):
        fit([task], recorder)
    recorder.close()
    assert len(list((tmp_path / "skipped").iterdir())) == 2
    assert same(dict(task.model.named_parameters()), State(config, tmp_path, 4).weights)


def test_data_that_are_not_finite_are_named(prepared: Path, tmp_path: Path):
    class Rotten(Denoising):
        def batch(self, step: int, slots: range) -> Batch:
            batch = super().batch(step, slots)
            batch.noisy[1, 2, 0, 0] = math.nan
            return batch

    config = SIX_STEPS.model_copy(update={"max_skipped_steps": 0})
    with pytest.raises(StillgrainError, match=r"step 0: .*; the data are not finite: noisy; look at the batches in "):
        fit([task_of(config, prepared, tmp_path, Rotten)], Recorder(tmp_path))


def test_a_best_metric_that_validation_does_not_give_is_refused_with_those_it_gives(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"best": Best(metric="val/mos")})
    with pytest.raises(ConfigError, match=r"best\.metric is 'val/mos', but validation gives val/psnr"):
        fit([task_of(config, prepared, tmp_path)], Recorder(tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_no_number_is_said_to_be_and_never_published(value: float, prepared: Path, tmp_path: Path):
    """As the first best value, nan let no later one be better."""

    class Broken(Denoising):
        def validate(self, model: ImageModel, world: World) -> dict[str, float]:
            return {"val/psnr": 30.0, "val/psnr.linear": value}

    task = task_of(CONFIG, prepared, tmp_path, Broken)
    with pytest.raises(StillgrainError, match=r"validation after step 4 gives \{'val/psnr\.linear': (nan|inf)\}"):
        fit([task], Recorder(tmp_path))
    assert task.published == []


# --- several workers --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Alone(World):
    """A worker among several that hears nothing of the others, so that its own gradient can be looked at."""

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size


def gradients(config: Config, prepared: Path, folder: Path, rank: int, size: int) -> dict[str, Tensor]:
    """What one worker brings into the average at the first step. The weights are random, so that all have a part."""
    task = task_of(config, prepared, folder, ByStep)
    assert isinstance(task, ByStep)
    task.remaining = iter([{"psnr": 1.0}])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    fit([task], Recorder(folder, leads=rank == 0), Alone(rank, size))
    return {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_gradients_averaged_over_workers_are_those_of_the_whole_batch_however_it_is_shared(
    size: int, prepared: Path, tmp_path: Path
):
    """With 5 workers, some have one image of the 8 and some have two."""
    config = CONFIG.model_copy(update={"steps": 1, "batch_size": 8, "optim": OptimConfig(clip_grad_norm=1e9)})
    whole = gradients(config, prepared, tmp_path / "whole", 0, 1)
    shares = [gradients(config, prepared, tmp_path / str(rank), rank, size) for rank in range(size)]
    assert len(whole) == len(list(nafnet.Config(width=4).build().parameters()))
    for name, gradient in whole.items():
        mean = torch.stack([share[name] for share in shares]).mean(dim=0)
        scale = float(gradient.abs().max())
        assert scale > 0
        torch.testing.assert_close(mean, gradient, rtol=0, atol=2e-5 * scale)


def test_a_long_gradient_is_shortened_as_a_whole_and_null_shortens_none(prepared: Path, tmp_path: Path):
    def of(clip_grad_norm: float | None) -> Tensor:
        config = CONFIG.model_copy(update={"steps": 1, "optim": OptimConfig(clip_grad_norm=clip_grad_norm)})
        found = gradients(config, prepared, tmp_path / str(clip_grad_norm), 0, 1)
        return torch.cat([gradient.flatten() for gradient in found.values()])

    free = of(None)
    length = float(free.norm())
    assert torch.equal(of(2 * length), free)
    torch.testing.assert_close(of(length / 4), free / 4, rtol=1e-4, atol=0)


SHARED = Config(
    steps=4,
    batch_size=3,
    optim=OptimConfig(lr=1e-3),
    log_every=1,
    validate_every=2,
    checkpoint_every=1,
    retention=Retention(last=9),
    then=(LaterStage(steps=2, changes={"frozen": ["encoder"], "batch_size": 2}),),
)
"""Batches of three, and then of two, for two workers."""


class BrokenSlot(Denoising):
    """The last slot of the second step's batch holds a NaN: one worker sees it, the other does not."""

    def batch(self, step: int, slots: range) -> Batch:
        batch = super().batch(step, slots)
        if step == 1 and 2 in slots:
            batch.noisy[slots.index(2), 0, 0, 0] = math.nan
        return batch


def run_shared_worker(prepared: str, folder: str, rank: int) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    meeting = Path(folder).with_suffix(".meeting")
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    world = World(rank, 2, wrap=nn.parallel.DistributedDataParallel)
    fit(tasks_of(SHARED, Path(prepared), Path(folder), BrokenSlot), Recorder(folder, leads=world.leads), world)
    torch.distributed.destroy_process_group()


def test_two_workers_learn_what_one_does_though_the_batch_is_odd_and_one_of_them_meets_a_nan(
    prepared: Path, tmp_path: Path
):
    root = Path(__file__).resolve().parents[3]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(prepared), str(tmp_path / "two"), str(rank)],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    fit(tasks_of(SHARED, prepared, tmp_path / "one", BrokenSlot), Recorder(tmp_path / "one"))
    try:
        for worker in workers:
            said, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0, said
    finally:
        for worker in workers:
            worker.kill()
    for step in range(1, 7):
        one, two = (State(SHARED, tmp_path / name, step) for name in ("one", "two"))
        assert two.progress.skipped_steps == one.progress.skipped_steps == (step > 1)
        for name, weight in one.weights.items():
            torch.testing.assert_close(two.weights[name], weight, rtol=0, atol=1e-6 * step)
    for split in ("train", "val"):
        one, two = (logged(tmp_path / name, split) for name in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(two[name] == pytest.approx(values, rel=1e-4) for name, values in one.items())
    # Kept by the one who met it, with its own share only.
    (file,) = (tmp_path / "two" / "skipped").iterdir()
    assert file.name == "step-00000001-rank-1.safetensors"
    assert len(load_file(file)["noisy"]) == 2


# --- settings ---------------------------------------------------------------------------------------------------------


def valid(**settings: Any) -> Config:
    return validate(Config, {"steps": 4, **settings}, "x")


@pytest.mark.parametrize("key", ["validate_every", "checkpoint_every"])
def test_a_checkpoint_within_a_window_of_losses_is_refused(key: str):
    """A resumed run would average the rest of the window only."""
    with pytest.raises(ConfigError, match=rf"{key} is 30, .* a multiple of log_every \(20\)"):
        valid(**({"validate_every": 40, "checkpoint_every": 40} | {key: 30}))


def test_each_stage_has_the_changes_of_all_before_it():
    config = valid(
        crop=16,
        optim={"lr": 0.1, "warmup_steps": 3},
        then=[
            {"steps": 5, "changes": {"crop": 32, "optim.lr": 0.01}},
            {"steps": 6, "changes": {"frozen": ["head"], "optim.schedule": {"kind": "plateau", "patience": 2}}},
            {"steps": 7, "changes": {"optim.lr": 0.001, "frozen": []}},
        ],
    )
    assert [stage.steps for stage in config.stages] == [4, 5, 6, 7]
    assert config.total_steps == 22
    assert [stage.crop for stage in config.stages] == [16, 32, 32, 32]
    assert [stage.optim.lr for stage in config.stages] == [0.1, 0.01, 0.01, 0.001]
    assert [stage.optim.warmup_steps for stage in config.stages] == [3, 3, 3, 3]
    assert [stage.frozen for stage in config.stages] == [(), (), ("head",), ()]
    assert [stage.optim.schedule.kind for stage in config.stages] == ["cosine", "cosine", "plateau", "plateau"]
    assert [stage.then for stage in config.stages] == [(), (), (), ()]


def test_a_run_without_later_stages_is_its_only_stage():
    config = valid()
    assert config.stages == [config]
    assert config.total_steps == config.steps == 4


@pytest.mark.parametrize("key", ["seed", "moving_average.decay", "optimizer.lr", "steps", "crops"])
def test_what_may_not_change_within_a_run_is_refused_by_name_with_what_may(key: str):
    with pytest.raises(
        ConfigError,
        match=rf"then\.1\.changes: '{key}' cannot change within a run; what can: optim, frozen, .*, crop",
    ):
        valid(then=[{"steps": 1, "changes": {"crop": 32}}, {"steps": 1, "changes": {key: 1}}])


def test_a_bad_value_names_the_stage_it_is_for():
    with pytest.raises(ConfigError, match=r"stage 2: optim\.lr: input should be greater than 0"):
        valid(then=[{"steps": 1, "changes": {"crop": 32}}, {"steps": 1, "changes": {"optim.lr": -1}}])
    with pytest.raises(ConfigError, match=r"stage 1: optim\.lrr: unknown key; did you mean 'lr'\?"):
        valid(then=[{"steps": 1, "changes": {"optim.lrr": 1}}])
    with pytest.raises(ConfigError, match=r"then\.0\.changes: .*at least 1"):
        valid(then=[{"steps": 1, "changes": {}}])


def test_a_config_with_stages_comes_back_from_json():
    assert Config.model_validate(json.loads(json.dumps(EVERYTHING.model_dump(mode="json")))) == EVERYTHING


if __name__ == "__main__":
    run_shared_worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
