"""Networks that see absolute scale must fit float16, whose largest number is 65504: on phones and in exported files it
is often the only fast type."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from library.config import kinds
from library.models import demosaic, mobile, nafnet, unet, utnet3
from library.models.blocks.image_model import ImageModel, ModelConfig

LARGEST = 65504 / 8
"""Three stops below the largest float16."""

CONFIGS: dict[str, ModelConfig] = {
    "unet": unet.Config(),
    "unet, small": unet.Config(funit=2),
    "unet, transposed": unet.Config(funit=8, head="transposed"),
    "unet, preupsample": unet.Config(funit=8, head="preupsample"),
    "unet, RGB": unet.Config(funit=8, in_channels=3, head="plain"),
    "utnet3": utnet3.Config(),
    "utnet3, thinner": utnet3.Config(funit=8),
    "utnet3, small": utnet3.Config(funit=2, head="transposed"),
    "nafnet": nafnet.Config(),
    "nafnet, small": nafnet.Config(width=4),
    "mobile": mobile.Config(),
    "mobile, small": mobile.Config(width=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
    "demosaic": demosaic.Config(),
    "demosaic, malvar": demosaic.Config(method="malvar"),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
fresh_or_moved = pytest.mark.parametrize("moved", [False, True], ids=["fresh", "moved"])


def built(config: ModelConfig, *, moved: bool) -> ImageModel:
    """Moved: every weight by a fifth of its layer's size, and what starts at zero away from it."""
    torch.manual_seed(0)
    model = config.build().eval().requires_grad_(False)
    if moved:
        for parameter in model.parameters():
            size = parameter.square().mean().sqrt()
            parameter.add_(0.2 * torch.randn_like(parameter) * (size if size > 0 else 0.5))
    return model


def scenes(model: ImageModel) -> Tensor:
    """At absolute scale: black, noise around black, white, highlights of two stops more, and all beside each other."""
    side = max(16, model.config.lattice)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(model.in_channels, side, side, generator=generator)
    flat = torch.ones(model.in_channels, side, side)
    stops = 4.0 ** torch.randint(-4, 2, (1, side, side), generator=generator)
    return torch.stack([0 * flat, 0.01 * noise, flat, 4 * flat, (stops + 0.01 * noise).clamp(max=4)])


def largest_activation(model: ImageModel, x: Tensor) -> tuple[float, str]:
    """Of any module's output, and that module's name."""
    found: dict[str, float] = {}
    for name, module in model.named_modules():

        def keep(_module: nn.Module, _inputs: object, output: Tensor | list[Tensor], name: str = name) -> None:
            tensors = output if isinstance(output, list) else [output]
            found[name] = max(float(tensor.abs().max()) for tensor in tensors)

        module.register_forward_hook(keep)
    model(x)
    assert len(found) >= len([m for m in model.modules() if list(m.parameters(recurse=False))])
    return max((value, name) for name, value in found.items())


@every_config
@fresh_or_moved
def test_no_activation_comes_near_the_largest_float16(config: ModelConfig, moved: bool):
    model = built(config, moved=moved)
    value, name = largest_activation(model, scenes(model))
    assert 1 < value < LARGEST, name


# A CPU takes a minute for float16 with hundreds of channels at full size.
@pytest.mark.parametrize("config", [config for name, config in CONFIGS.items() if name != "utnet3"], ids=repr)
@fresh_or_moved
def test_a_network_in_float16_gives_the_picture_of_float32(config: ModelConfig, moved: bool):
    model = built(config, moved=moved)
    x = scenes(model)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.float16):
        y = model(x).float()
    assert y.isfinite().all()
    for image, expected in zip(y, exact, strict=True):
        # Eleven bits a layer.
        assert (image - expected).abs().max() <= 0.01 * max(float(expected.abs().max()), 0.01)


def test_every_kind_of_model_is_among_them():
    assert {config.kind for config in CONFIGS.values()} == set(kinds("library.models"))
