"""Training codecs from config to bundle, in one process: what is reported, stages, ladders, and the same bits however
it was interrupted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from upath import UPath

from library.codec_bundle import load_codec
from library.codecs import balle_manypriors, rawcodec
from library.config import load
from library.errors import BundleError, ConfigError
from library.files.picture import read_image
from library.inference.codec import CodecEngine
from library.inference.sgr_files import decode_file, encode_file
from library.models.blocks.codec import CodecModel
from library.training.checkpoint import checkpoints
from library.training.recorder import read_metrics
from tests.codec_training import MANYPRIORS, RAWCODEC, checked, one_rate, paint_big_scenes, settings, train
from tests.kills import differences
from workloads import compress
from workloads.launch import RunResult, starting_bundle

CONFIGS = Path(__file__).resolve().parents[2] / "workloads" / "configs"


@pytest.fixture(scope="module")
def big_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint_big_scenes(tmp_path_factory.mktemp("scenes") / "big")


def logged(folder: UPath, split: str) -> dict[str, dict[int, float]]:
    """Values by name, then by step."""
    values: dict[str, dict[int, float]] = {}
    for line in read_metrics(folder):
        if line["split"] == split:
            values.setdefault(line["name"], {})[line["step"]] = line["value"]
    return values


def fresh(data: dict[str, Any]) -> CodecModel:
    """The codec as a run begins with it."""
    config = checked(data)
    torch.manual_seed(config.seed)
    return config.model.build()


def largest_changes(model: CodecModel, before: dict[str, torch.Tensor]) -> dict[str, float]:
    """By part of the model, how far its parameters are from those before."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        part.name: max(float((p.detach() - before[names[id(p)]]).abs().max()) for p in part.parameters)
        for part in model.parameter_groups()
    }


@pytest.fixture(scope="module")
def alone(big_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The short run, left alone."""
    return train(settings(big_scenes, tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def neighbour(big_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The upper rung of a ladder."""
    return train(one_rate(big_scenes, tmp_path_factory.mktemp("neighbour")))


# --- what is reported -------------------------------------------------------------------------------------------------


def test_every_line_names_the_loss_and_all_its_parts(alone: RunResult) -> None:
    values = logged(alone.folder, "train")
    parts = {"bpp", "bpp.z", "bpp.y1", "bpp.y2", "distortion", "mse", "faithful", "lmbda"}
    assert values.keys() == {"loss", "lr", *parts}
    assert all(list(by_step) == list(range(1, 13)) for by_step in values.values())
    for step, bpp in values["bpp"].items():
        assert bpp == pytest.approx(sum(values[f"bpp.{name}"][step] for name in ("z", "y1", "y2")), rel=1e-5)
        assert 30 <= values["lmbda"][step] <= 10000


def test_validation_tells_every_quality_apart_and_higher_ones_cost_more(alone: RunResult) -> None:
    values = logged(alone.folder, "val")
    each = {f"{name}.q{q}" for q in (8, 40) for name in ("bpp", "psnr", "psnr.linear", "ms_ssim")}
    assert values.keys() == {"loss", "rate_gap", *each}
    assert all(list(by_step) == [4, 8, 12] for by_step in values.values())
    assert all(values["bpp.q40"][step] > values["bpp.q8"][step] > 0 for step in (4, 8, 12))


def test_the_rate_weighs_little_at_first_and_all_of_itself_after_the_warm_up(big_scenes: Path, tmp_path: Path) -> None:
    """Of a codec of one rate the reported loss can be taken apart again: loss - lmbda * distortion = weight * bpp."""
    data = one_rate(big_scenes, tmp_path, rate={"lmbda": 0.5, "warmup_steps": 3}, steps=6)
    values = logged(train(data).folder, "train")
    weights = [(values["loss"][n] - 0.5 * values["distortion"][n]) / values["bpp"][n] for n in range(1, 7)]
    assert weights == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], rel=1e-3)
    assert set(values["lmbda"].values()) == {0.5}
    assert {"bpp.prior", "bpp.y"} < values.keys()


# --- the rate of real files -------------------------------------------------------------------------------------------


def test_coded_bytes_that_exceed_the_estimate_by_more_than_a_percent_raise_the_alarm(
    big_scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a few hundred bytes, those that every stream begins with are some percent."""
    data = settings(big_scenes, tmp_path, steps=1, then=[], validation_qualities=[0])
    with caplog.at_level(logging.WARNING, "workloads.compress"):
        gap = train(data).metrics["val/rate_gap"]
    assert gap > 0.01
    assert [record.getMessage() for record in caplog.records] == [
        f"coded files differ from the estimated rate by {100 * gap:.1f} %"
    ]


def test_files_of_some_size_have_the_estimated_rate_and_raise_no_alarm(
    big_scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = settings(
        big_scenes, tmp_path, steps=1, then=[], validation_qualities=[24], model={**RAWCODEC, "latents": 32}
    )
    data["dataset"]["validation_crop"] = 384
    with caplog.at_level(logging.WARNING, "workloads.compress"):
        metrics = train(data).metrics
    assert abs(metrics["val/rate_gap"]) < 0.01
    assert caplog.records == []


def test_no_gap_is_reported_when_no_scene_is_to_be_checked(big_scenes: Path, tmp_path: Path) -> None:
    data = settings(big_scenes, tmp_path, steps=1, then=[], checked_scenes=0)
    assert "val/rate_gap" not in train(data).metrics


# --- stages -----------------------------------------------------------------------------------------------------------


def test_the_finish_trains_the_entropy_model_and_leaves_the_transforms(alone: RunResult) -> None:
    saved = {c.name: load_file(c / "tensors.safetensors") for c in checkpoints(alone.folder)}
    before, after = saved["step-00000008"], saved["step-00000012"]
    model = load_codec(alone.bundle).model
    model.load_state_dict({name.removeprefix("model."): t for name, t in after.items() if name.startswith("model.")})
    changes = largest_changes(model, {name.removeprefix("model."): tensor for name, tensor in before.items()})
    assert changes.pop("entropy") > 1e-4
    assert changes == {"encoder": 0, "decoder": 0}


def test_in_the_finish_the_rate_is_that_of_rounding_and_before_it_that_of_noise(
    alone: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    first, finish = checked(settings(big_scenes, tmp_path)).stages
    prepared = str(first.dataset.prepare(tmp_path / "stores"))
    model = load_codec(alone.bundle).model
    differ = []
    for stage in (first, finish):
        task = compress.Compression(stage, model, prepared, UPath(tmp_path))
        one = task.batch(9, range(4))
        other = task.batch(9, range(4))
        other.seeds.add_(1)
        rates = [float(task.losses(model, batch)["bpp"]) for batch in (one, other)]
        differ.append(rates[0] != rates[1])
    assert differ == [True, False]


# --- parts and ladders ------------------------------------------------------------------------------------------------


def test_the_entropy_model_of_the_legacy_family_learns_ten_times_as_fast(big_scenes: Path, tmp_path: Path) -> None:
    """Adam's first step moves what has a gradient by the learning rate, whatever the gradient's size."""
    optim = {"lr": 1e-4, "weight_decay": 0.0, "schedule": {"kind": "constant"}}
    data = one_rate(big_scenes, tmp_path, steps=1, optim=optim, moving_average=None)
    changes = largest_changes(load_codec(train(data).bundle).model, fresh(data).state_dict())
    assert changes == pytest.approx({"encoder": 1e-4, "entropy": 1e-3, "decoder": 1e-4}, rel=0.02)


def test_a_rung_begins_with_all_that_its_neighbour_learned_and_counted(
    neighbour: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    config = checked(one_rate(big_scenes, tmp_path, lmbda=32.0, start_from=str(neighbour.folder)))
    model = config.model.build()
    model.load_state_dict(starting_bundle(config, config.model, load_codec).model.state_dict())
    theirs = load_codec(neighbour.bundle).model.state_dict()
    assert model.state_dict().keys() == theirs.keys() > {"priors.usage", "priors.unused_for"}
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_a_rung_at_a_rate_of_next_to_nothing_ends_where_its_neighbour_did(
    neighbour: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    stay = {"optim": {"lr": 1e-12}, "steps": 2}
    rung = train(one_rate(big_scenes, tmp_path, lmbda=32.0, start_from=str(neighbour.folder), **stay))
    bundle = load_codec(rung.bundle)
    theirs = load_codec(neighbour.bundle).model.state_dict()
    assert max(largest_changes(bundle.model, theirs).values()) < 1e-8
    assert max(largest_changes(fresh(one_rate(big_scenes, tmp_path)), theirs).values()) > 1e-4
    assert bundle.manifest["training"]["rate"]["lmbda"] == 32
    assert set(logged(rung.folder, "train")["lmbda"].values()) == {32}


def test_a_start_from_a_denoiser_is_refused(small_bundle: Path, big_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is the bundle of a denoiser, and that of a codec is needed here"):
        train(settings(big_scenes, tmp_path, start_from=str(small_bundle)))


def test_a_start_from_another_codec_is_refused_with_the_difference(
    neighbour: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    data = one_rate(big_scenes, tmp_path, model={**MANYPRIORS, "num_priors": 6}, start_from=str(neighbour.folder))
    with pytest.raises(ConfigError, match=r"another model: model\.num_priors is 6 here and 4 there"):
        train(data)


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["alone", "neighbour"])
def test_what_a_run_has_trained_codes_a_raw_and_gives_a_picture_back(
    trained: str, raw_dng: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result: RunResult = request.getfixturevalue(trained)
    engine = CodecEngine(load_codec(result.bundle))
    encoded = encode_file(raw_dng, tmp_path / "photo.sgr", engine, quality=20, verify=True)
    assert 0 < encoded.estimated_bits < encoded.stream_bits < 1.2 * encoded.estimated_bits
    decode_file(tmp_path / "photo.sgr", {"exr": tmp_path / "photo.exr"}, engine)
    picture = read_image(tmp_path / "photo.exr").rgb
    assert sorted(picture.shape) == [3, 131, 153]
    assert np.isfinite(picture).all()
    assert picture.std() > 0.01


def test_a_run_leaves_a_bundle_of_its_best_step_pictures_and_a_report(alone: RunResult) -> None:
    manifest = load_codec(alone.bundle).manifest
    losses = logged(alone.folder, "val")["loss"]
    assert manifest["step"] == min(losses, key=lambda step: losses[step])
    assert manifest["metrics"]["val/loss"] == min(losses.values())
    assert manifest["training"]["model"]["latents"] == 8
    names = {path.name for path in (alone.folder / "images").iterdir()}
    assert names == {f"scene0_{label}.{suffix}" for label in ("noisy", "decoded", "truth") for suffix in ("exr", "png")}
    assert (alone.folder / "report.html").exists()


# --- the same bits ----------------------------------------------------------------------------------------------------


class PowerCut(compress.Compression):
    """Fails at a step, as if the power had gone."""

    at: ClassVar[int]

    def batch(self, step: int, slots: range) -> Any:
        if step == self.at:
            raise OSError("the power went")
        return super().batch(step, slots)


@pytest.mark.parametrize("step", [5, 10])
def test_a_run_that_was_interrupted_goes_on_to_the_same_bits(
    step: int, alone: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    """In the first stage, with the rate's warm-up over two steps since the last checkpoint, and in the finish."""
    data = settings(big_scenes, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "Compression", PowerCut)
        patch.setattr(PowerCut, "at", step, raising=False)
        with pytest.raises(OSError, match="the power went"):
            train(data)
    (last,) = checkpoints(tmp_path / "run")[-1:]
    assert 0 < int(last.name.removeprefix("step-")) < step
    assert differences(train(data).folder, alone.folder) == []


def test_an_interrupted_run_of_the_legacy_family_remembers_which_priors_were_used(
    neighbour: RunResult, big_scenes: Path, tmp_path: Path
) -> None:
    data = one_rate(big_scenes, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "Compression", PowerCut)
        patch.setattr(PowerCut, "at", 7, raising=False)
        with pytest.raises(OSError, match="the power went"):
            train(data)
    assert differences(train(data).folder, neighbour.folder) == []


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": MANYPRIORS},
            r"rate\.lmbda is \[30\.0, 10000\.0\], but codec 'balle_manypriors' has one rate: give one number",
        ),
        ({"validation_qualities": [40, 8]}, r"validation_qualities are \[40, 8\]: give ascending numbers from 0 to 63"),
        ({"validation_qualities": [8, 64]}, r"validation_qualities are \[8, 64\]: give ascending numbers"),
        ({"validation_qualities": [-1]}, r"validation_qualities are \[-1\]: give ascending numbers"),
        ({"model": {"kind": "rawcode"}}, r"unknown kind 'rawcode'; .*known: balle_manypriors, rawcodec"),
        ({"model": {"kind": "nafnet"}}, r"unknown kind 'nafnet'; known: balle_manypriors, rawcodec"),
        ({"model": {**RAWCODEC, "in_channels": 3}}, r"model\.in_channels is 3, but dataset 'synthetic' yields 4"),
        ({"frozen": ["backbone"]}, r"frozen names backbone, but model 'rawcodec' has the parts encoder, entropy"),
        ({"rounding": "floor"}, r"rounding: .*'noise' or 'round'"),
        ({"rate": {"lmbda": [10.0, 1.0]}}, r"give one number above 0, or \[lowest, highest\]"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(settings(Path("scenes"), Path("runs"), **changes))


@pytest.mark.parametrize("key", ["crop", "validation_crop"])
def test_a_crop_that_is_no_multiple_of_the_codecs_lattice_is_refused_with_one_that_is(key: str) -> None:
    data = settings(Path("scenes"), Path("runs"))
    data["dataset"][key] = 224
    with pytest.raises(ConfigError, match=rf"dataset\.{key} is 224, .* multiple of 64 px .* dataset\.{key} to 256"):
        checked(data)


NARROW = {
    "rawcodec": rawcodec.Config(width=8, latents=8, hyper_latents=4, encoder_blocks=2, decoder_blocks=2),
    "balle_manypriors": balle_manypriors.Config(hidden=8, latents=8, num_priors=4),
}
SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if load(path).get("workload") == "compress"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_training_of_a_codec_goes_through_all_its_stages(
    path: Path, big_scenes: Path, tmp_path: Path
) -> None:
    """Each for a step, with a narrow codec."""
    shipped = load(path, [f"storage={tmp_path}", f"dataset.scenes={big_scenes}", "dataset.held_out=[scene0]"])
    stages = [{"steps": 1, "changes": {**stage["changes"], "batch_size": 1}} for stage in shipped.get("then", [])]
    narrow = NARROW[shipped["model"]["kind"]].model_dump(mode="json")
    one = {"steps": 1, "batch_size": 1, "log_every": 1, "validate_every": 1, "checkpoint_every": 1, "then": stages}
    result = train({**shipped, **one, "model": narrow, "scaling": {"workers": 0}})
    assert set(logged(result.folder, "train")["loss"]) == set(range(1, 2 + len(stages)))
    assert load_codec(result.bundle).manifest["training"]["name"] == shipped["name"]
