from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from library.bundle import load_bundle, write_bundle
from library.config import validate
from library.datasets import synthetic
from library.datasets.batch import Batch
from library.datasets.sensors import ParametricSensor
from library.errors import ConfigError, StillgrainError
from library.losses import l1
from library.metrics import psnr
from library.models import nafnet
from library.models.blocks.image_model import ImageModel
from library.training.checkpoint import Progress
from library.training.loop import Best, TrainingConfig, fit
from library.training.objective import Objective
from library.training.optim import OptimConfig
from library.training.recorder import METRICS_FILE, Recorder, read_metrics
from library.training.world import World

NOISY = ParametricSensor(shot=(3e-2, 3e-2), read_scatter=0)
CONFIG = TrainingConfig(
    steps=12,
    batch_size=2,
    optim=OptimConfig(lr=1e-3, warmup_steps=2),
    log_every=2,
    validate_every=4,
    checkpoint_every=6,
)


class Denoising:
    """A small denoiser over a few scenes: a whole task, as the workload has it."""

    def __init__(self, prepared: Path, run_folder: Path, config: TrainingConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.run_folder = run_folder
        self.model: ImageModel = nafnet.Config(width=4).build()
        self.objective = Objective({"l1": l1.Config()}, "srgb")
        self.dataset = synthetic.Config(crop=32, validation_crop=176, sensor=NOISY).open(prepared, config.seed)
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
    def validate(self, world: World) -> dict[str, float]:
        self.validated.append(self.model.training)
        _, item = self.dataset.validation_item(0)
        return {"val/psnr": float(psnr(self.model(item.noisy), item.clean, item.mask))}

    def publish(self, world: World, step: int, metrics: dict[str, float]) -> None:
        self.published.append(step)
        write_bundle(
            self.run_folder / "bundle",
            self.model,
            name="test",
            training=self.config.model_dump(mode="json"),
            data_digest=self.dataset.digest,
            metrics=metrics,
            step=step,
        )


@pytest.fixture(scope="session")
def prepared(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.Config(scenes=str(scenes)).prepare(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Denoising]:
    folder = tmp_path_factory.mktemp("undisturbed")
    task = Denoising(prepared, folder, CONFIG)
    assert fit(CONFIG, task, Recorder(folder)).step == 12
    return folder, task


def recorded(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on whether it was interrupted."""
    bundle = load_bundle(folder / "bundle")
    latest = Recorder(folder).latest_checkpoint()
    assert latest is not None
    return {
        "metrics": (folder / METRICS_FILE).read_text(),
        "checkpoint": latest.name,
        "state": (latest / "state.json").read_text(),
        "tensors": (latest / "tensors.safetensors").read_bytes(),
        "bundle": bundle.digest,
    }


# --- what a run does --------------------------------------------------------------------------------------------------


def test_the_first_step_lowers_the_loss_on_its_batch(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"steps": 1, "optim": OptimConfig(lr=1e-4)})
    task = Denoising(prepared, tmp_path, config)
    batch = task.batch(0, range(2))
    before = task.objective(task.model(batch.noisy), batch)["loss"]
    fit(config, task, Recorder(tmp_path))
    after = task.objective(task.model(batch.noisy), batch)["loss"]
    assert task.losses_seen[0] == pytest.approx(float(before.detach()), rel=1e-5)
    assert after < before


def test_forty_steps_teach_a_small_network_to_denoise(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(
        update={"steps": 40, "batch_size": 4, "validate_every": 20, "optim": OptimConfig(lr=1e-2, warmup_steps=5)}
    )
    task = Denoising(prepared, tmp_path, config)
    before = task.validate(World())["val/psnr"]
    fit(config, task, Recorder(tmp_path))
    values = [line["value"] for line in read_metrics(tmp_path) if line["split"] == "val"]
    assert before + 0.5 < values[0] < values[1]
    assert math.fsum(task.losses_seen[-5:]) < 0.8 * math.fsum(task.losses_seen[:5])


def test_every_window_of_losses_is_logged_as_its_mean_with_the_rate_of_its_last_step(
    undisturbed: tuple[Path, Denoising],
):
    folder, task = undisturbed
    lines = [line for line in read_metrics(folder) if line["split"] == "train"]
    logged = {(line["step"], line["name"]): line["value"] for line in lines}
    assert {step for step, _ in logged} == {2, 4, 6, 8, 10, 12}
    for step in range(2, 13, 2):
        assert logged[step, "loss"] == pytest.approx(math.fsum(task.losses_seen[step - 2 : step]) / 2)
        assert logged[step, "l1"] == logged[step, "loss"]
        assert logged[step, "lr"] == CONFIG.optim.lr_at(step - 1, 12)


def test_validation_comes_at_its_steps_in_evaluation_mode_and_the_best_is_published(
    undisturbed: tuple[Path, Denoising],
):
    folder, task = undisturbed
    values = {line["step"]: line["value"] for line in read_metrics(folder) if line["split"] == "val"}
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


def test_the_best_may_be_the_smallest_and_only_a_better_one_is_published(prepared: Path, tmp_path: Path):
    class Scripted(Denoising):
        values = iter([3.0, 5.0, 5.0, 1.0, 2.0, 1.0])

        def validate(self, world: World) -> dict[str, float]:
            return {"val/loss": next(self.values), "val/other": 0.0}

    config = CONFIG.model_copy(update={"validate_every": 2, "best": Best(metric="val/loss", mode="min")})
    task = Scripted(prepared, tmp_path, config)
    progress = fit(config, task, Recorder(tmp_path))
    assert task.published == [2, 8]
    assert (progress.best_step, progress.best_value) == (8, 1.0)


def test_the_last_step_is_logged_validated_and_kept_though_no_interval_ends_there(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"steps": 5})
    task = Denoising(prepared, tmp_path, config)
    fit(config, task, Recorder(tmp_path))
    steps = {(line["step"], line["split"]) for line in read_metrics(tmp_path)}
    assert steps == {(2, "train"), (4, "train"), (4, "val"), (5, "train"), (5, "val")}
    latest = Recorder(tmp_path).latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-00000005"


def test_a_network_in_bfloat16_learns_too_and_keeps_float32_weights(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"steps": 4, "precision": "bf16"})
    task = Denoising(prepared, tmp_path, config)
    exact = Denoising(prepared, tmp_path / "exact", CONFIG)
    fit(config, task, Recorder(tmp_path))
    fit(CONFIG.model_copy(update={"steps": 4}), exact, Recorder(tmp_path / "exact"))
    assert all(p.dtype == torch.float32 for p in task.model.parameters())
    assert task.losses_seen[0] == pytest.approx(exact.losses_seen[0], rel=1e-2)
    assert task.losses_seen[1:] != exact.losses_seen[1:]


# --- stopping and going on --------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a worker that is preempted."""


class KilledAtCommit(Recorder):
    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self.killed_at = step

    def commit(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        if step == self.killed_at:
            raise Killed
        super().commit(step, metrics, write)


class KilledAtStep(Denoising):
    """Dies at an update, at a batch, or when publishing."""

    def __init__(self, *args: Any, update: int = -1, batch: int = -1, publish: int = -1) -> None:
        super().__init__(*args)
        self.at = {"update": update, "batch": batch, "publish": publish}
        self.updates = 0

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.updates += 1
        if self.updates == self.at["update"]:
            raise Killed
        return super().losses(network, batch)

    def batch(self, step: int, slots: range) -> Batch:
        if step == self.at["batch"]:
            raise Killed
        return super().batch(step, slots)

    def publish(self, world: World, step: int, metrics: dict[str, float]) -> None:
        if step == self.at["publish"]:
            raise Killed
        super().publish(world, step, metrics)


@pytest.mark.parametrize(
    "death", [{"update": 1}, {"update": 6}, {"update": 12}, {"batch": 4}, {"batch": 9}, {"publish": 8}, {"commit": 6}]
)
def test_a_run_that_was_stopped_goes_on_as_if_it_never_had_been(
    death: dict[str, int], prepared: Path, tmp_path: Path, undisturbed: tuple[Path, Denoising]
):
    recorder = KilledAtCommit(tmp_path, death["commit"]) if "commit" in death else Recorder(tmp_path)
    task = KilledAtStep(prepared, tmp_path, CONFIG, **{k: v for k, v in death.items() if k != "commit"})
    with pytest.raises(Killed):
        fit(CONFIG, task, recorder)
    recorder.close()
    again = CONFIG.model_copy()
    fit(again, Denoising(prepared, tmp_path, again), Recorder(tmp_path))
    assert recorded(tmp_path) == recorded(undisturbed[0])


def test_a_run_may_be_stopped_again_and_again(prepared: Path, tmp_path: Path, undisturbed: tuple[Path, Denoising]):
    deaths = 0
    for _ in range(20):
        # Each attempt lives for five updates, one more than lie between two checkpoints.
        task = KilledAtStep(prepared, tmp_path, CONFIG, update=6)
        recorder = Recorder(tmp_path)
        try:
            fit(CONFIG, task, recorder)
            break
        except Killed:
            deaths += 1
            recorder.close()
    assert deaths == 2
    assert recorded(tmp_path) == recorded(undisturbed[0])


def test_the_random_numbers_of_the_process_do_not_matter(
    prepared: Path, tmp_path: Path, undisturbed: tuple[Path, Denoising]
):
    task = Denoising(prepared, tmp_path, CONFIG)
    torch.rand(17)
    fit(CONFIG, task, Recorder(tmp_path))
    assert recorded(tmp_path) == recorded(undisturbed[0])


def test_another_seed_is_another_run(prepared: Path, tmp_path: Path, undisturbed: tuple[Path, Denoising]):
    config = CONFIG.model_copy(update={"seed": 1})
    fit(config, Denoising(prepared, tmp_path, config), Recorder(tmp_path))
    assert recorded(tmp_path)["tensors"] != recorded(undisturbed[0])["tensors"]


def test_a_finished_run_is_left_as_it_is(prepared: Path, undisturbed: tuple[Path, Denoising]):
    folder, _ = undisturbed
    before = recorded(folder)
    task = Denoising(prepared, folder, CONFIG)
    progress = fit(CONFIG, task, Recorder(folder))
    assert isinstance(progress, Progress)
    assert progress.step == 12
    assert task.losses_seen == task.validated == task.published == []
    assert recorded(folder) == before


# --- what cannot go on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step_and_leaves_the_weights(
    value: float, prepared: Path, tmp_path: Path
):
    class Broken(Denoising):
        def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
            losses = super().losses(network, batch)
            if len(self.losses_seen) == 4:
                self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
                return {"loss": losses["loss"] * value, "l1": losses["l1"]}
            return losses

    task = Broken(prepared, tmp_path, CONFIG)
    recorder = Recorder(tmp_path)
    with pytest.raises(StillgrainError, match=r"the loss is (nan|inf) at step 3 \(.*'l1': 0\.\d+.*\): lower optim\.lr"):
        fit(CONFIG, task, recorder)
    recorder.close()
    assert all(torch.equal(p, task.before[name]) for name, p in task.model.named_parameters())


def test_a_best_metric_that_validation_does_not_give_is_refused_with_those_it_gives(prepared: Path, tmp_path: Path):
    config = CONFIG.model_copy(update={"best": Best(metric="val/mos")})
    recorder = Recorder(tmp_path)
    with pytest.raises(StillgrainError, match=r"best\.metric is 'val/mos', but validation gives val/psnr"):
        fit(config, Denoising(prepared, tmp_path, config), recorder)
    recorder.close()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_that_is_no_number_is_said_to_be_and_never_published(value: float, prepared: Path, tmp_path: Path):
    """As the first best value, nan let no later one be better."""

    class Broken(Denoising):
        def validate(self, world: World) -> dict[str, float]:
            return {"val/psnr": 30.0, "val/psnr.linear": value}

    task, recorder = Broken(prepared, tmp_path, CONFIG), Recorder(tmp_path)
    with pytest.raises(StillgrainError, match=r"validation after step 4 gives \{'val/psnr\.linear': (nan|inf)\}"):
        fit(CONFIG, task, recorder)
    recorder.close()
    assert task.published == []


@pytest.mark.parametrize("key", ["validate_every", "checkpoint_every"])
def test_a_checkpoint_within_a_window_of_losses_is_refused(key: str):
    """A resumed run would average the rest of the window only."""
    with pytest.raises(ConfigError, match=rf"{key} is 30, .* a multiple of log_every \(20\)"):
        validate(TrainingConfig, {"steps": 1, "validate_every": 40, "checkpoint_every": 40} | {key: 30}, "x")
