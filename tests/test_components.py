"""What every model, loss and data set must hold to; a new file is tested the day it lands."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import Tensor

from library.config import Component, config_class, kinds, validate
from library.datasets.batch import Batch
from library.losses import LossConfig
from library.metrics import MS_SSIM_SMALLEST_SIDE
from library.models.blocks.image_model import ImageModel, ModelConfig, measured_geometry
from library.models.blocks.reach import probe_geometry
from library.pairs.index import write_index
from tests.prepared_pairs import write_pair

PACKAGES = ("library.models", "library.losses", "library.datasets")
every_component = pytest.mark.parametrize(
    ("package", "kind"), [(package, kind) for package in PACKAGES for kind in kinds(package)]
)
every_model = pytest.mark.parametrize("kind", kinds("library.models"))
every_trainable_model = pytest.mark.parametrize(
    "kind", [k for k in kinds("library.models") if cast(ModelConfig, config_class("library.models", k)(kind=k)).parts]
)
every_loss = pytest.mark.parametrize("kind", kinds("library.losses"))
every_dataset = pytest.mark.parametrize("kind", kinds("library.datasets"))

_REQUIRED = {"paired": {"prepared": "/a/prepared/folder"}}
"""Settings without which a kind cannot be: it reads what another workload made."""
_SMALL = {"funit": 2, "width": 4}
"""Settings that only make a network thinner."""


def small_model(kind: str, **settings: Any) -> ImageModel:
    """With every parameter moved, since those that start at zero would hide what lies behind them."""
    cls = cast(type[ModelConfig], config_class("library.models", kind))
    known = {name: value for name, value in _SMALL.items() if name in cls.model_fields}
    torch.manual_seed(0)
    model = cls(kind=kind, **{**known, **settings}).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def noisy_input(model: ImageModel, *, batch: int = 2, lattices: tuple[int, int] = (2, 3)) -> Tensor:
    height, width = (n * model.config.lattice for n in lattices)
    return torch.rand(batch, model.in_channels, height, width, generator=torch.Generator().manual_seed(1)) * 1.2 - 0.1


# --- all --------------------------------------------------------------------------------------------------------------


@every_component
def test_a_kind_is_the_name_of_its_file_and_needs_no_settings_but_its_data(package: str, kind: str):
    config = config_class(package, kind).model_validate(_REQUIRED.get(kind, {}))
    assert config.kind == kind
    assert isinstance(config, Component)
    assert type(config).__module__ == f"{package}.{kind}"
    assert importlib.import_module(f"{package}.{kind}").__doc__


@every_component
def test_a_component_crosses_a_process_boundary_as_json(package: str, kind: str):
    config = config_class(package, kind).model_validate(_REQUIRED.get(kind, {}))
    sent = json.loads(json.dumps(config.model_dump(mode="json")))
    assert validate(type(config), sent, "worker") == config


# --- models -----------------------------------------------------------------------------------------------------------


@every_model
def test_a_model_gives_a_picture_of_three_colours_at_its_scale_in_float32(kind: str):
    model = small_model(kind)
    x = noisy_input(model)
    y = model(x)
    assert y.shape == (len(x), 3, model.scale * x.shape[2], model.scale * x.shape[3])
    assert y.dtype == torch.float32
    assert y.isfinite().all()


@every_model
def test_every_weight_of_a_model_and_its_input_get_a_finite_gradient_and_take_part(kind: str):
    model = small_model(kind)
    x = noisy_input(model).requires_grad_()
    model(x).square().mean().backward()
    for name, parameter in (*model.named_parameters(), ("input", x)):
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_model
def test_a_fresh_model_gets_finite_gradients_from_black_and_from_white(kind: str):
    torch.manual_seed(0)
    model = small_model(kind).config.build()
    for level in (0.0, 1.0, -0.01):
        model.zero_grad()
        x = torch.full_like(noisy_input(model), level).requires_grad_()
        model(x).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in (*model.parameters(), x))


@every_model
def test_weights_saved_and_loaded_give_the_same_picture_bit_for_bit(kind: str, tmp_path: Path):
    model, other = small_model(kind), small_model(kind).config.build()
    x = noisy_input(model).contiguous(memory_format=torch.channels_last)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    other = other.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    # Without parameters there is nothing to tell two models apart.
    assert torch.equal(other(x), model(x)) == (model.num_parameters == 0)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(other(x), model(x))


@every_model
def test_an_image_of_a_batch_is_treated_as_it_is_alone(kind: str):
    model = small_model(kind)
    x = noisy_input(model)
    torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-5, atol=1e-5)


@every_model
def test_what_a_config_says_of_its_model_is_what_the_model_measures(kind: str):
    model = small_model(kind)
    geometry = model.geometry
    assert (model.config.lattice, model.config.in_channels) == (geometry.lattice, model.in_channels)
    # Asked of the thinnest such network, so that this one must be asked itself.
    assert geometry == probe_geometry(model, model.in_channels, model.scale)
    assert model.halo >= geometry.reach > 0
    assert model.halo % model.lattice == 0
    assert model.num_parameters == sum(p.numel() for p in model.state_dict().values())
    assert model.macs_per_pixel > 0


@every_model
def test_asking_a_config_draws_no_random_numbers(kind: str):
    """Or weights and data would depend on whether a validator looked at the model."""
    config = small_model(kind).config
    before = torch.get_rng_state()
    measured_geometry.cache_clear()
    assert config.lattice == config.geometry.lattice
    assert config.parts is not None
    assert torch.equal(torch.get_rng_state(), before)


@every_model
def test_every_parameter_is_in_exactly_one_part_that_the_config_can_name(kind: str):
    model = small_model(kind)
    groups = model.parameter_groups()
    names = [group.name for group in groups]
    given = [p for group in groups for p in group.parameters]
    assert len(names) == len(set(names))
    assert model.config.parts == tuple(names)
    assert len(given) == len({id(p) for p in given})
    assert {id(p) for p in given} == {id(p) for p in model.parameters()}
    assert all(group.parameters for group in groups)
    assert all(group.lr_multiplier > 0 for group in groups)


@every_model
def test_a_part_is_whole_children_of_the_model_so_that_its_weights_are_found_by_name(kind: str):
    model = small_model(kind)
    children = {name for name, _ in model.named_children()}
    for part, names in model.parts.items():
        assert names, part
        assert children.issuperset(names), part


@every_model
def test_freezing_a_part_leaves_it_in_its_group(kind: str):
    """An optimizer's state must fit a model whatever is frozen at the time."""
    model = small_model(kind)
    before = model.parameter_groups()
    model.requires_grad_(False)
    for group, frozen in zip(before, model.parameter_groups(), strict=True):
        assert group.name == frozen.name
        assert [id(p) for p in group.parameters] == [id(p) for p in frozen.parameters]


@every_trainable_model
def test_one_step_down_the_gradient_lowers_the_error(kind: str):
    torch.manual_seed(0)
    model = small_model(kind)
    x = noisy_input(model)
    target = torch.full((len(x), 3, model.scale * x.shape[2], model.scale * x.shape[3]), 0.25)

    def error() -> Tensor:
        return (model(x) - target).square().mean()

    before = error()
    before.backward()
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(1e-4 * parameter.grad / norm)
    assert error() < before


# --- losses -----------------------------------------------------------------------------------------------------------


def loss_case(kind: str, *, batch: int = 2) -> tuple[torch.nn.Module, Tensor, Tensor, Tensor]:
    """A loss with two unlike pictures, and a mask that leaves out another share of each image."""
    config = cast(LossConfig, config_class("library.losses", kind).model_validate({}))
    side = max(24, config.smallest_side + 15)
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(batch, 3, side, side, generator=generator)
    output = target + 0.2 * torch.randn(target.shape, generator=generator)
    mask = torch.ones(batch, 1, side, side)
    for index in range(batch):
        mask[index, :, : side // 4 * (index + 1), side // 2 :] = 0
    return config.build(), output, target, mask


@every_loss
def test_equal_pictures_have_no_loss_and_others_have_some(kind: str):
    loss, output, target, mask = loss_case(kind)
    assert loss(target, target, mask) == 0
    assert loss(output, target, mask) > 0
    assert loss(output, target, torch.zeros_like(mask)) == 0


@every_loss
def test_a_loss_is_a_float32_scalar(kind: str):
    loss, output, target, mask = loss_case(kind)
    value = loss(output, target, mask)
    assert (value.shape, value.dtype) == ((), torch.float32)


@every_loss
def test_what_the_network_gives_at_masked_pixels_has_no_influence(kind: str):
    loss, output, target, mask = loss_case(kind)
    other = torch.where(mask.bool(), output, torch.randn(output.shape) * 100)
    values, gradients = [], []
    for picture in (output, other):
        picture = picture.clone().requires_grad_()
        value = loss(picture, target, mask)
        value.backward()
        values.append(value.detach())
        gradients.append(picture.grad)
    assert values[0] == values[1]
    assert torch.equal(gradients[0], gradients[1])
    assert gradients[0].isfinite().all()
    assert not gradients[0][~mask.bool().expand_as(output)].any()
    assert gradients[0][mask.bool().expand_as(output)].any()


@every_loss
def test_the_loss_of_a_batch_is_the_mean_over_its_images_whatever_their_masks(kind: str):
    loss, output, target, mask = loss_case(kind)
    alone = [loss(output[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(len(output))]
    torch.testing.assert_close(loss(output, target, mask), torch.stack(alone).mean())


@every_loss
def test_gradients_are_finite_where_pictures_are_equal_flat_or_opposite(kind: str):
    loss, _, target, mask = loss_case(kind)
    for output in (target, torch.zeros_like(target), -target, 1 - target, torch.full_like(target, 10.0)):
        picture = output.clone().requires_grad_()
        loss(picture, target, mask).backward()
        assert picture.grad is not None
        assert picture.grad.isfinite().all()


@every_loss
def test_the_smallest_side_of_a_loss_is_enough_and_one_less_is_not(kind: str):
    config = cast(LossConfig, config_class("library.losses", kind).model_validate({}))
    side = config.smallest_side
    assert side in (1, MS_SSIM_SMALLEST_SIDE)
    picture = torch.rand(1, 3, side, side)
    assert config.build()(picture, picture, torch.ones(1, 1, side, side)) == 0
    if side > 1:
        picture = picture[..., 1:, 1:]
        with pytest.raises(ValueError, match=str(side - 1)):
            config.build()(picture, picture, torch.ones(1, 1, side - 1, side - 1))


@every_loss
def test_a_weight_that_is_not_positive_is_refused(kind: str):
    with pytest.raises(ValueError, match="greater than 0"):
        config_class("library.losses", kind).model_validate({"weight": 0})


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def opened(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every data set over a few small scenes."""
    prepared = tmp_path_factory.mktemp("prepared")
    write_index(prepared, [write_pair(prepared, (2, -3), name=name, size=(200, 216)) for name in "abc"])
    small = {"scenes": str(scenes), "prepared": str(prepared), "crop": 32, "validation_crop": 176}
    datasets = {}
    for kind in kinds("library.datasets"):
        cls = config_class("library.datasets", kind)
        config: Any = cls(kind=kind, **{name: value for name, value in small.items() if name in cls.model_fields})
        datasets[kind] = config.open(config.prepare(tmp_path_factory.mktemp("store")), seed=3)
    return datasets


def assert_is_a_batch(batch: Batch, planes: int) -> None:
    n, _, h, w = batch.noisy.shape
    assert len(batch) == n
    assert batch.noisy.shape == (n, planes, h, w)
    assert batch.clean.shape == (n, 3, 2 * h, 2 * w)
    assert batch.mask.shape == (n, 1, 2 * h, 2 * w)
    assert batch.xyz_to_camera.shape == (n, 3, 3)
    for tensor in (batch.noisy, batch.clean, batch.mask, batch.xyz_to_camera):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
    assert batch.noisy.max() <= 1
    assert batch.clean.min() >= 0
    assert batch.clean.max() <= 1
    assert set(batch.mask.unique().tolist()) <= {0.0, 1.0}
    # What saturates in any channel does not count.
    assert not batch.mask[(batch.clean >= 1).any(dim=1, keepdim=True)].any()
    assert (torch.linalg.cond(batch.xyz_to_camera) < 100).all()


@every_dataset
def test_a_batch_holds_mosaics_with_their_truth(kind: str, opened: dict[str, Any]):
    dataset = opened[kind]
    batch = dataset.batch(7, range(4), batch_size=4)
    assert_is_a_batch(batch, dataset.config.planes)
    assert len(batch) == 4
    assert batch.clean.shape[-2:] == (32, 32)


@every_dataset
def test_every_validation_scene_has_a_name_and_one_image(kind: str, opened: dict[str, Any]):
    dataset = opened[kind]
    names = set()
    for index in range(len(dataset.validation_scenes)):
        name, item = dataset.validation_item(index)
        names.add(name)
        assert_is_a_batch(item, dataset.config.planes)
        assert item.clean.shape[-2:] == (176, 176)
    assert len(names) == len(dataset.validation_scenes) > 0


@every_dataset
def test_a_batch_moved_to_a_device_is_the_same_in_the_networks_layout(kind: str, opened: dict[str, Any]):
    batch = opened[kind].batch(0, range(2), batch_size=2)
    moved = batch.to(torch.device("cpu"))
    for name in ("noisy", "clean", "mask", "xyz_to_camera"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert moved.noisy.is_contiguous(memory_format=torch.channels_last)
