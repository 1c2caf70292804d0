from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from library.bundle import load_bundle, write_bundle
from library.datasets import synthetic
from library.models.nafnet import Config, NAFNet
from library.ops.cfa import XTRANS_PHASES, sample_cfa
from library.ops.cfa_planes import interpolate_cfa_planes, pack_cfa_planes
from library.ops.noise import add_poisson_gaussian
from library.ops.transfer import root_encode


@functools.cache
def trained_like() -> NAFNet:
    """Weights that all take part, unlike the fresh ones, most of which are multiplied by zero."""
    torch.manual_seed(0)
    model = Config(width=4).build().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def packed(*shape: int) -> Tensor:
    """Scene-linear with values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


@pytest.mark.parametrize(("blocks", "lattice"), [((1,), 2), ((1, 1), 4), ((1, 1, 1), 8)])
def test_every_level_doubles_the_lattice(blocks: tuple[int, ...], lattice: int):
    config = Config(width=2, encoder_blocks=blocks, decoder_blocks=blocks, middle_blocks=1)
    model = config.build()
    assert model.lattice == config.lattice == lattice
    assert model.halo % lattice == 0


def test_the_geometry_of_the_default_depth():
    # At full resolution: intro, encoder block, decoder block, head reach 1 each; the middle ones count 2 and 4 times.
    assert (trained_like().geometry.reach, trained_like().halo, trained_like().lattice) == (19, 20, 4)


def test_as_many_levels_must_go_up_as_down():
    with pytest.raises(ValueError, match="encoder_blocks has 2 levels and decoder_blocks 3: give both as many"):
        Config(encoder_blocks=(1, 1), decoder_blocks=(1, 1, 1))
    with pytest.raises(ValueError, match="multiple of 2"):
        Config(width=5)


def test_shifting_the_mosaic_by_the_lattice_shifts_the_picture():
    model = trained_like()
    shift, reach = model.lattice, model.geometry.reach
    x = packed(1, 4, 64, 72 + shift)
    y, shifted = model(x[..., :-shift]), model(x[..., shift:])
    inside = slice(2 * (reach + 1), -2 * (reach + 1))
    torch.testing.assert_close(
        shifted[..., : -2 * shift][..., inside], y[..., 2 * shift :][..., inside], rtol=1e-5, atol=1e-5
    )
    x = packed(1, 4, 72 + shift, 64)
    y, shifted = model(x[..., :-shift, :]), model(x[..., shift:, :])
    torch.testing.assert_close(
        shifted[..., : -2 * shift, :][..., inside, :], y[..., 2 * shift :, :][..., inside, :], rtol=1e-5, atol=1e-5
    )


def test_no_statistic_of_the_whole_image_enters_a_pixel():
    """The original's channel attention would: a bright corner changed every pixel."""
    model = trained_like()
    x = packed(1, 4, 64, 64)
    other = x.clone()
    other[..., :4, :4] += 10
    difference = (model(other) - model(x)).abs().amax(dim=(0, 1))
    far = 2 * (4 + model.geometry.reach)
    assert difference[:far, :far].max() > 0.1
    difference[:far, :far] = 0
    assert difference.max() == 0


def test_a_network_in_bfloat16_gives_float32_within_a_few_percent():
    model = trained_like()
    x = packed(1, 4, 32, 32)
    exact = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.float32
    assert not torch.equal(y, exact)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


# --- CFA planes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfa", ["GBRG", XTRANS_PHASES[5]])
def test_a_fresh_network_of_cfa_planes_is_the_interpolated_mosaic(cfa: str):
    config = Config(in_channels=5, width=4)
    model = config.build()
    assert (model.scale, model.lattice, config.lattice) == (1, 8, 8)
    x = pack_cfa_planes(packed(2, 24, 32), cfa, a=1e-3, b=1e-5)
    torch.testing.assert_close(model(x), interpolate_cfa_planes(x[:, :1], x[:, 1:4]), rtol=1e-5, atol=1e-6)


def test_one_network_learns_bayer_and_x_trans_alike_heeds_sigma_and_keeps_it_in_its_bundle(
    scenes: Path, tmp_path: Path
):
    data = synthetic.Config(
        scenes=str(scenes),
        crop=32,
        validation_crop=176,
        output="cfa_planes",
        sensor={"kind": "parametric", "shot": (2e-3, 3e-2)},  # pyright: ignore
    )
    opened = data.open(data.prepare(tmp_path), seed=0)
    torch.manual_seed(0)
    model = Config(in_channels=5, width=8, encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1).build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.9))
    for step in range(50):
        batch = opened.batch(step, range(8), batch_size=8)
        loss = (root_encode(model(batch.noisy)) - root_encode(batch.clean)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().requires_grad_(False)

    light = opened.validation_item(0)[1].clean[0, :, :96, :96].clamp_max(0.7)
    for cfa in ("GRBG", XTRANS_PHASES[2]):
        noisy = add_poisson_gaussian(sample_cfa(light, cfa), 2e-2, 5e-5, generator=torch.Generator().manual_seed(3))
        x, told_less = (pack_cfa_planes(noisy, cfa, a=2e-2, b=5e-5, strength=s)[None] for s in (1.0, 0.25))
        start, output = root_encode(interpolate_cfa_planes(x[:, :1], x[:, 1:4])), root_encode(model(x))
        assert (output - root_encode(light)).square().mean() < 0.9 * (start - root_encode(light)).square().mean()
        assert (root_encode(model(told_less)) - start).abs().mean() < (output - start).abs().mean()

    write_bundle(tmp_path / "b", model, name="planes", training={}, data_digest="d", metrics={}, step=60)
    bundle = load_bundle(tmp_path / "b")
    assert bundle.manifest["input"]["channels"] == 5
    assert bundle.manifest["output"]["space"] == "camera_rgb"
    x = opened.batch(0, range(2), batch_size=2).noisy
    torch.testing.assert_close(bundle.model(x), model(x), rtol=0, atol=1e-5)
