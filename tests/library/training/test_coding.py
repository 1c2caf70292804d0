from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from library.config import ConfigError, validate
from library.datasets.batch import Batch
from library.losses import l1, mse
from library.models.blocks.codec import CodecOutput
from library.ops.cfa import pack_cfa, sample_cfa
from library.ops.color import XYZ_TO_LIN_REC2020
from library.ops.transfer import root_decode, root_encode
from library.training.coding import NUM_QUALITIES, CodecBatch, RateConfig, RateDistortion
from library.training.objective import Objective

SIDE = 16
# A camera whose colours are already lin_rec2020, so that distances can be worked out by hand.
IDENTITY = XYZ_TO_LIN_REC2020.float()


def pictures(num_pictures: int = 4) -> Batch:
    """Truths with noise on them; some pixels do not count."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(num_pictures, 3, SIDE, SIDE, generator=generator)
    mask = (torch.rand(num_pictures, 1, SIDE, SIDE, generator=generator) > 0.2).float()
    noisy = pack_cfa(sample_cfa(clean))
    noisy = noisy + 0.1 * torch.randn(noisy.shape, generator=generator)
    noise = torch.tensor([[1e-3, 1e-5]]).repeat(num_pictures, 1) * torch.arange(1, num_pictures + 1)[:, None]
    return Batch(noisy, clean, mask, IDENTITY.expand(num_pictures, 3, 3), noise)


def drawn(rate: RateConfig, *, quality: list[float] | None = None, strength: list[float] | None = None) -> CodecBatch:
    batch = rate.draw(pictures(), seed=1, step=0, slots=range(4))
    changes: dict[str, Tensor] = {}
    if quality is not None:
        changes["quality"] = torch.tensor(quality)
    if strength is not None:
        changes["strength"] = torch.tensor(strength)
    return dataclasses.replace(batch, **changes)


def some_output(batch: Batch) -> CodecOutput:
    generator = torch.Generator().manual_seed(3)
    picture = batch.clean + 0.2 * torch.randn(batch.clean.shape, generator=generator)
    bits = {name: 100 * torch.rand(len(batch), generator=generator) for name in ("z", "y1", "y2")}
    return CodecOutput(picture, bits)


def squared(rate: RateConfig, weight: float = 1.0) -> RateDistortion:
    return RateDistortion(Objective({"mse": mse.Config(weight=weight)}, "root"), rate)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_what_a_picture_is_coded_under_is_a_function_of_seed_step_and_slot():
    rate, batch = RateConfig(denoised_share=0.5), pictures()
    first = rate.draw(batch, seed=1, step=5, slots=range(8, 12))
    rate.draw(batch, seed=9, step=7, slots=range(4))
    again = rate.draw(batch, seed=1, step=5, slots=range(8, 12))
    for name in ("quality", "strength", "rate_weight", "seeds"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for other in ({"seed": 2, "step": 5}, {"seed": 1, "step": 6}):
        assert not torch.equal(rate.draw(batch, slots=range(8, 12), **other).seeds, first.seeds)


def test_two_workers_draw_together_what_one_would():
    rate = RateConfig(denoised_share=0.5)
    whole = rate.draw(pictures(6), seed=1, step=3, slots=range(6))
    halves = [rate.draw(pictures(3), seed=1, step=3, slots=slots) for slots in (range(3), range(3, 6))]
    for name in ("quality", "strength", "rate_weight", "seeds"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(whole, name))


def test_the_pictures_themselves_stay_as_they_were():
    batch = pictures()
    coded = RateConfig().draw(batch, seed=1, step=3, slots=range(4))
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(coded, field.name), getattr(batch, field.name))


def test_qualities_are_whole_and_each_is_as_likely_strengths_follow_the_share():
    rate = RateConfig(denoised_share=0.75)
    many = rate.draw(pictures(1), seed=0, step=0, slots=range(6400))
    counts = torch.bincount(many.quality.long(), minlength=NUM_QUALITIES)
    assert torch.equal(many.quality, many.quality.round())
    assert len(counts) == NUM_QUALITIES
    assert counts.min() > 50
    assert counts.max() < 150
    assert (many.strength == 1).float().mean().item() == pytest.approx(0.75, abs=0.02)
    others = many.strength[many.strength < 1]
    assert others.mean().item() == pytest.approx(0.5, abs=0.03)
    assert 0 <= others.min() < 0.01
    assert others.max() > 0.99
    assert len(many.seeds.unique()) == 6400


def test_when_all_is_denoised_every_strength_is_1():
    assert (RateConfig().draw(pictures(1), seed=0, step=0, slots=range(2000)).strength == 1).all()
    assert (RateConfig(denoised_share=0).draw(pictures(1), seed=0, step=0, slots=range(2000)).strength < 1).all()


@pytest.mark.parametrize(("warmup", "weights"), [(0, [1, 1, 1, 1, 1]), (3, [0.25, 0.5, 0.75, 1, 1])])
def test_the_rates_weight_rises_in_even_steps_and_stays(warmup: int, weights: list[float]):
    rate = RateConfig(warmup_steps=warmup)
    found = [rate.draw(pictures(2), seed=0, step=step, slots=range(2)).rate_weight for step in range(5)]
    assert [w.tolist() for w in found] == [[weight, weight] for weight in weights]


def test_conditions_carry_each_pictures_own_noise():
    conditions = RateConfig().draw(pictures(), seed=0, step=0, slots=range(4)).conditions
    torch.testing.assert_close(conditions.a, torch.tensor([1e-3, 2e-3, 3e-3, 4e-3]))
    torch.testing.assert_close(conditions.offset, 1e-2 + conditions.a)  # b / a, and a photon


def test_a_codec_batch_moves_and_is_kept_whole():
    batch = drawn(RateConfig(denoised_share=0.5))
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, CodecBatch)
    assert moved.tensors().keys() == batch.tensors().keys() >= {"quality", "strength", "rate_weight", "seeds"}


# --- what a bit is worth ----------------------------------------------------------------------------------------------


def test_lmbda_runs_from_one_end_to_the_other_at_a_constant_ratio():
    rate = RateConfig(lmbda=(30, 20000))
    lmbda = rate.lmbda_of(torch.arange(64.0))
    assert lmbda[[0, -1]].tolist() == pytest.approx([30, 20000], rel=1e-5)
    torch.testing.assert_close(lmbda[1:] / lmbda[:-1], torch.full((63,), (20000 / 30) ** (1 / 63)), rtol=1e-4, atol=0)


def test_one_lmbda_is_that_of_every_quality():
    rate = RateConfig(lmbda=250)
    assert rate.lmbda_of(torch.arange(64.0)).unique().tolist() == [250]
    assert rate.weight_of(torch.arange(64.0)).unique().tolist() == [1]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_balance_weighs_qualities_against_each_other_by_a_power_of_lmbda(balance: float):
    rate = RateConfig(lmbda=(10, 1000), balance=balance)
    low, middle, high = rate.weight_of(torch.tensor([0.0, 31.5, 63.0])).tolist()
    assert middle == pytest.approx(1)
    assert low / high == pytest.approx(100**balance, rel=1e-4)
    assert low * high == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("lmbda", [0, -3, (0, 10), (20, 10), (-5, 10)])
def test_a_lmbda_that_cannot_be_is_refused_in_words(lmbda: object):
    with pytest.raises(ConfigError, match="give one number above 0, or"):
        validate(RateConfig, {"lmbda": lmbda}, "test")


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_rate_and_lmbda_times_distortion_worked_out_by_hand():
    """Two pictures, off by 0.1 and 0.2 everywhere; 512 and 1024 bits for 256 photosites."""
    rate = RateConfig(lmbda=(10, 1000), balance=0.5)
    batch = dataclasses.replace(
        rate.draw(Batch.stack([pictures(2)]), seed=0, step=0, slots=range(2)),
        quality=torch.tensor([0.0, 63.0]),
        rate_weight=torch.tensor([0.25, 0.25]),
        mask=torch.ones(2, 1, SIDE, SIDE),
    )
    off = torch.tensor([0.1, 0.2])[:, None, None, None]
    bits = {"z": torch.tensor([128.0, 24.0]), "y": torch.tensor([384.0, 1000.0])}
    found = RateDistortion(Objective({"mse": mse.Config(weight=2.0)}, "none"), rate)(
        CodecOutput(batch.clean + off, bits), batch
    )
    first = math.sqrt(10) * (0.25 * 2 + 10 * 2 * 0.01)
    second = (0.25 * 4 + 1000 * 2 * 0.04) / math.sqrt(10)
    assert found["loss"].item() == pytest.approx((first + second) / 2, rel=1e-4)
    assert found["bpp"].item() == pytest.approx(3)
    assert (found["bpp.z"].item(), found["bpp.y"].item()) == pytest.approx((152 / 512, 1384 / 512))
    assert found["mse"].item() == pytest.approx(0.025, rel=1e-4)
    assert found["distortion"].item() == pytest.approx(0.05, rel=1e-4)
    assert found["lmbda"].item() == pytest.approx(505, rel=1e-4)


def test_every_picture_has_its_own_lmbda():
    rate = RateConfig(lmbda=(10, 1000), balance=0)
    straight, crossed = drawn(rate, quality=[0, 63, 0, 63]), drawn(rate, quality=[63, 0, 63, 0])
    # Only pictures 1 and 3 are wrong, so it must matter whether it is they that are of high quality.
    picture = straight.clean.clone()
    picture[1::2] += 0.1
    output = CodecOutput(picture, {"y": torch.zeros(4)})
    dear, cheap = (squared(rate)(output, batch)["loss"].item() for batch in (straight, crossed))
    assert dear == pytest.approx(100 * cheap, rel=1e-4)


def test_a_pictures_share_of_the_loss_is_its_own_whatever_is_beside_it():
    rate = RateConfig(denoised_share=0.5)
    batch = drawn(rate, quality=[3, 20, 40, 63], strength=[0, 0.3, 1, 1])
    output = some_output(batch)
    together = squared(rate)(output, batch)["loss"]
    alone = [squared(rate)(*part(output, batch, slice(n, n + 1)))["loss"] for n in range(4)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def part(output: CodecOutput, batch: CodecBatch, which: slice) -> tuple[CodecOutput, CodecBatch]:
    ours = {field.name: getattr(batch, field.name)[which] for field in dataclasses.fields(batch)}
    bits = {name: values[which] for name, values in output.bits.items()}
    return CodecOutput(output.picture[which], bits), CodecBatch(**ours)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_shares_of_a_batch_averaged_by_size_are_the_whole(cut: int):
    """All but lmbda, whose mean is of logarithms."""
    rate = RateConfig(denoised_share=0.5)
    batch = drawn(rate, strength=[0, 0.3, 1, 1])
    output = some_output(batch)
    whole = squared(rate)(output, batch)
    halves = [squared(rate)(*part(output, batch, which)) for which in (slice(cut), slice(cut, None))]
    for name in whole.keys() - {"lmbda"}:
        average = (cut * halves[0][name] + (4 - cut) * halves[1][name]) / 4
        torch.testing.assert_close(average, whole[name], msg=name)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_losses_that_are_named_do_not_depend_on_what_was_drawn(share: float):
    """A worker whose pictures were all to be denoised named no `faithful` loss, and the log line that is gathered from
    all workers failed."""
    rate = RateConfig(denoised_share=share)
    strengths = [[1.0] * 4] if share == 1 else [[1.0] * 4, [0.0, 1.0, 0.5, 1.0]]
    names = {tuple(squared(rate)(some_output(batch), batch)) for s in strengths for batch in [drawn(rate, strength=s)]}
    assert len(names) == 1
    assert ("faithful" in names.pop()) == (share < 1)


def test_at_strength_1_the_truth_is_what_counts_and_the_noisy_mosaic_does_not():
    rate = RateConfig(denoised_share=0.5)
    batch = drawn(rate, strength=[1.0] * 4)
    output = some_output(batch)
    distortion, _ = squared(rate).distortion(output.picture, batch)
    other, _ = squared(rate).distortion(output.picture, dataclasses.replace(batch, noisy=batch.noisy + 3))
    assert torch.equal(distortion, other)
    perfect, _ = squared(rate).distortion(batch.clean, batch)
    assert perfect.tolist() == pytest.approx([0.0] * 4, abs=1e-8)
    always, _ = squared(RateConfig()).distortion(output.picture, batch)
    assert torch.equal(distortion, always)


def test_at_strength_0_the_noisy_mosaic_is_what_counts_at_its_own_photosites():
    rate = RateConfig(denoised_share=0.5)
    batch = drawn(rate, strength=[0.0] * 4)
    picture = batch.clean.clone()
    # R, G1, G2 and B of the mosaic, each where its photosite lies.
    for plane, (channel, top, left) in enumerate([(0, 0, 0), (1, 0, 1), (1, 1, 0), (2, 1, 1)]):
        picture[:, channel, top::2, left::2] = batch.noisy[:, plane]
    perfect, parts = squared(rate).distortion(picture, batch)
    assert perfect.tolist() == pytest.approx([0.0] * 4, abs=1e-8)
    assert parts["faithful"].tolist() == pytest.approx([0.0] * 4, abs=1e-8)
    elsewhere = picture.clone()
    elsewhere[:, 0, 1::2] = 7.0  # no red photosite there
    assert squared(rate).distortion(elsewhere, batch)[0].tolist() == pytest.approx([0.0] * 4, abs=1e-8)
    there = picture.clone()
    there[:, 0, ::2, ::2] += 0.5
    assert (squared(rate).distortion(there, batch)[0] > 1e-3).all()


def test_between_them_the_distortions_are_mixed_by_strength_at_the_objectives_weight():
    rate = RateConfig(denoised_share=0.5)
    ends = [drawn(rate, strength=[end] * 4) for end in (0.0, 1.0)]
    output = some_output(ends[0])
    faithful, denoised = (squared(rate, weight=3.0).distortion(output.picture, batch)[0] for batch in ends)
    mixed, parts = squared(rate, weight=3.0).distortion(output.picture, drawn(rate, strength=[0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(mixed, torch.lerp(faithful, denoised, torch.tensor([0.0, 0.25, 0.5, 1.0])))
    torch.testing.assert_close(faithful, 3 * parts["faithful"])
    torch.testing.assert_close(denoised, 3 * parts["mse"])


def test_for_squared_errors_strength_is_the_share_of_the_noise_that_goes():
    """On noise that is the same in all colours of a photosite, as the root sees it: 1 - strength of it is best kept."""
    strength, rate = 0.3, RateConfig(denoised_share=0.5)
    batch = drawn(rate, strength=[strength] * 4)
    clean = torch.full_like(batch.clean, 0.5)
    noise = 0.05 * torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def with_noise(share: float) -> Tensor:
        return root_decode(root_encode(clean) + share * noise)

    batch = dataclasses.replace(batch, clean=clean, noisy=pack_cfa(sample_cfa(with_noise(1.0))))
    shares = [n / 20 for n in range(21)]
    losses = torch.stack([squared(rate).distortion(with_noise(share), batch)[0] for share in shares])
    assert [shares[i] for i in losses.argmin(dim=0).tolist()] == pytest.approx([1 - strength] * 4)


def test_what_the_mask_hides_has_no_part_in_distortion_even_when_it_is_no_number():
    rate = RateConfig(denoised_share=0.5)
    batch = drawn(rate, strength=[0.0, 0.5, 1.0, 1.0])
    picture = some_output(batch).picture
    hidden = (batch.mask == 0).expand_as(picture)
    expected, _ = squared(rate).distortion(picture, batch)
    broken = torch.where(hidden, torch.nan, picture).requires_grad_()
    found, _ = squared(rate).distortion(broken, batch)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()


def test_several_losses_are_weighed_and_reported_by_name_unweighed():
    rate = RateConfig()
    batch = drawn(rate)
    output = some_output(batch)
    found = RateDistortion(Objective({"mse": mse.Config(weight=0.8), "l1": l1.Config(weight=0.2)}, "srgb"), rate)(
        output, batch
    )
    assert found["distortion"].item() == pytest.approx(0.8 * found["mse"].item() + 0.2 * found["l1"].item(), rel=1e-5)
    assert set(found) == {"loss", "bpp", "bpp.z", "bpp.y1", "bpp.y2", "distortion", "mse", "l1", "lmbda"}


def test_under_autocast_the_loss_is_the_same_and_float32():
    rate = RateConfig()
    batch = drawn(rate)
    expected = squared(rate)(some_output(batch), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = squared(rate)(some_output(batch), batch)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[name])
