"""Laws of `rawcodec`, and its golden streams in tests/expected/rawcodec (written by `python -m
tests.expected.rawcodec.write`), which every machine must decode to the same latents for as long as the stream has this
version."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from library.codecs import rawcodec
from library.codecs.rawcodec import RawCodec
from library.config import ConfigError, validate
from library.entropy import rans
from library.entropy.tables import TOTAL, FrequencyTables, ideal_bits
from library.models.blocks.codec import Conditions, Passed
from library.models.blocks.gaussian import CERTAIN, scale_ladder
from library.models.blocks.latent_coding import CorruptStreamError, decode_tiles, encode_tiles
from library.ops.cfa import pack_cfa, sample_cfa
from library.ops.noise import add_poisson_gaussian

FOLDER = Path(__file__).resolve().parents[2] / "expected" / "rawcodec"
GOLDEN = json.loads((FOLDER / "golden.json").read_text())
SEEDS = torch.tensor([11, 12])
every_quality = pytest.mark.parametrize("quality", [0.0, 21.0, 40.5, 63.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_config(**more: Any) -> rawcodec.Config:
    return rawcodec.Config(
        **{"width": 8, "latents": 8, "hyper_latents": 4, "encoder_blocks": 2, "decoder_blocks": 2, **more}
    )


def small(seed: int = 0, **more: Any) -> RawCodec:
    """Weights that are all random, so that every layer takes part, and predictions that differ from place to place."""
    torch.manual_seed(seed)
    model = small_config(**more).build().eval()
    generator = seeded(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name.endswith("layer.weight"):
                parameter.mul_(3)
    return model


def told(num_pictures: int = 1, quality: float = 32, strength: float = 1, a: float = 2e-3, offset: float = 7e-3):
    return Conditions(*(torch.full((num_pictures,), value) for value in (quality, strength, a, offset)))


def pictures(model: RawCodec, num_pictures: int = 2, *, lattices: tuple[int, int] = (1, 2), seed: int = 1) -> Tensor:
    """Noisy and smooth, with values below 0 and above 1."""
    height, width = (n * model.lattice for n in lattices)
    rows = torch.arange(float(height))[:, None] / 9
    columns = torch.arange(float(width)) / 7
    phases = 6 * torch.rand(num_pictures, model.in_channels, 1, 1, generator=seeded(seed))
    clean = 0.5 + 0.55 * torch.sin(rows + phases) * torch.cos(columns - phases)
    return clean + 0.02 * torch.randn(clean.shape, generator=seeded(seed + 1))


def some_latents(model: RawCodec, num_tiles: int, height: int, width: int) -> Tensor:
    """Busy and flat places, among them a latent that is far beyond every table."""
    shape = (num_tiles, model.latent_channels, height, width)
    size = 20 * torch.rand(num_tiles, 1, height, width, generator=seeded(3)) ** 3
    y = torch.randn(shape, generator=seeded(4)) * size
    y[-1, 0, 0, 0], y[-1, -1, -1, -1] = 1e6, -1e6
    return y


def decoded(
    model: RawCodec, passes: list[Passed], shape: torch.Size | tuple[int, ...], conditions: Conditions
) -> Tensor:
    """What the model makes of these passes when it is given them, each for the tables it was coded with."""
    coming = iter(passes)

    def read(indices: np.ndarray) -> np.ndarray:
        expected = next(coming)
        assert np.array_equal(indices, expected.indices)
        return expected.values

    y_hat = model.decode_latents(shape[0], shape[2], shape[3], conditions, read)
    assert next(coming, None) is None
    return y_hat


def first_pass(height: int, width: int, channels: int) -> np.ndarray:
    """(C, h, w), whether a latent is coded in the first of the two passes, as the module says it."""
    odd = (np.arange(height)[:, None] + np.arange(width)) % 2 == 1
    return np.where((np.arange(channels) < channels // 2)[:, None, None], ~odd, odd)


def laid_out(passes: list[Passed], field: str, shape: torch.Size) -> np.ndarray:
    """(T, C, h, w) of what the two passes of y say about each latent."""
    first = first_pass(shape[2], shape[3], shape[1])
    whole = np.full(tuple(shape), -99)
    whole[:, first], whole[:, ~first] = getattr(passes[1], field), getattr(passes[2], field)
    return whole


def sha256(array: np.ndarray | Tensor) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


@contextlib.contextmanager
def computed_with(*, channels_last: bool, onednn: bool, threads: int, model: RawCodec) -> Iterator[None]:
    """Another of the ways in which PyTorch may compute the same."""

    def to_channels_last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)

    layers = [m for part in (model.hyper_synthesis, model.hyper_head, model.context) for m in part.modules()]
    hooks = [layer.register_forward_pre_hook(to_channels_last) for layer in layers] if channels_last else []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    # Not `torch.backends.mkldnn.flags`, which also sets what only Intel's GPUs have, and warns of it.
    torch.backends.mkldnn.set_flags(_enabled=onednn)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)
        torch.set_num_threads(before)
        for hook in hooks:
            hook.remove()


def trained_for(num_steps: int) -> RawCodec:
    """A few steps of rate + lmbda * squared error at random qualities, on smooth pictures with noise."""
    torch.manual_seed(0)
    model = small_config(latents=16, hyper_latents=8).build().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = seeded(7)
    for step in range(num_steps):
        clean = pictures(model, 4, lattices=(1, 1), seed=2 * step).clamp(0, 1)
        noisy = add_poisson_gaussian(clean, 2e-3, 1e-5, generator=generator)
        quality = torch.randint(64, (4,), generator=generator).float()
        output = model(noisy, told(4)._replace(quality=quality), torch.randint(2**40, (4,), generator=generator))
        bpp = sum(output.bits.values(), torch.zeros(4)) / (4 * clean[0, 0].numel())
        error = (pack_cfa(sample_cfa(output.picture)) - clean).square().mean(dim=(1, 2, 3))
        lmbda = 30 * (20000 / 30) ** (quality / 63)
        loss = ((bpp + lmbda * error) / lmbda.sqrt()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> RawCodec:
    return trained_for(50)


@pytest.fixture(scope="module")
def model() -> RawCodec:
    return small()


@pytest.fixture(scope="module")
def tables(model: RawCodec) -> FrequencyTables:
    return model.frequency_tables()


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_channels", [4, 3])
def test_a_picture_comes_back_at_full_resolution_with_a_rate_for_each_stream(in_channels: int):
    model = small(in_channels=in_channels)
    x = pictures(model)
    assert model.scale == (2 if in_channels == 4 else 1)
    assert (model.scale * model.stride, model.scale * model.lattice) == (16, 64)
    for seeds in (None, SEEDS):
        output = model(x, told(2), seeds)
        assert output.picture.shape == (2, 3, model.scale * x.shape[2], model.scale * x.shape[3])
        assert output.picture.dtype == torch.float32
        assert tuple(output.bits) == model.streams == ("z", "y1", "y2")
        for bits in output.bits.values():
            assert bits.shape == (2,)
            assert (bits > 0).all()
    assert model.analyze(x, told(2)).shape == (2, 8, x.shape[2] // model.stride, x.shape[3] // model.stride)


@pytest.mark.parametrize(
    ("tier", "encoding", "decoding"), [("tiny", 8.4, 8.4), ("small", 22.9, 25.9), ("base", 66.4, 82.1)]
)
def test_the_tiers_take_about_the_work_they_were_planned_with(tier: Any, encoding: float, decoding: float):
    """In kMAC per pixel, each with the entropy model; found are 6.5 and 6.7, 22.1 and 24.7, 67.0 and 79.1."""
    with torch.device("meta"):
        model = rawcodec.Config(tier=tier).build()
    macs = {name: count / 1000 for name, count in model.macs_per_pixel.items()}
    assert macs["encoder"] + macs["entropy"] == pytest.approx(encoding, rel=0.3)
    assert macs["decoder"] + macs["entropy"] == pytest.approx(decoding, rel=0.3)
    assert macs["entropy"] < 0.1 * encoding


def test_every_parameter_is_in_exactly_one_part():
    model = small()
    groups = model.parameter_groups()
    assert model.config.parts == tuple(group.name for group in groups) == ("encoder", "entropy", "decoder")
    ours = [id(p) for group in groups for p in group.parameters]
    assert sorted(ours) == sorted(id(p) for p in model.parameters())


def test_the_config_knows_lattice_and_qualities_without_weights():
    assert (small_config().lattice, small_config().num_qualities) == (32, 64)
    assert small_config(in_channels=3).lattice == 64


def test_a_tiers_sizes_can_be_replaced_one_by_one():
    assert rawcodec.Config(tier="tiny").sizes == (96, 128, 64, 6, 6)
    assert rawcodec.Config(tier="tiny", latents=32, decoder_blocks=0).sizes == (96, 32, 64, 6, 0)


@pytest.mark.parametrize(
    "settings", [{"in_channels": 5}, {"width": 7}, {"latents": 9}, {"tier": "huge"}, {"gain_knots": 1}, {"widht": 8}]
)
def test_a_config_that_cannot_be_is_refused(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(rawcodec.Config, settings, "test")


def test_a_config_crosses_a_process_boundary_as_json():
    config = small_config(in_channels=3, gain_range=(0.5, 30.0))
    assert validate(rawcodec.Config, json.loads(config.model_dump_json()), "worker") == config


@torch.no_grad()
@pytest.mark.parametrize("in_channels", [4, 3])
def test_latents_of_a_window_with_its_reach_are_those_of_the_whole_picture(in_channels: int):
    model = small(in_channels=in_channels)
    lattice, stride = model.lattice, model.stride
    halo = -(-model.analysis_reach // lattice) * lattice
    x = pictures(model, 1, lattices=(2 * halo // lattice + 2, 2 * halo // lattice + 3))
    whole = model.analyze(x, told())
    top, left = halo // stride, halo // stride
    rows, columns = whole.shape[2] - 2 * top, whole.shape[3] - 2 * left
    for i, j in itertools.product(range(0, rows, lattice // stride), range(0, columns, lattice // stride)):
        window = x[:, :, i * stride : i * stride + 2 * halo + lattice, j * stride : j * stride + 2 * halo + lattice]
        found = model.analyze(window, told())[:, :, top : top + 4, left : left + 4]
        expected = whole[:, :, top + i : top + i + 4, left + j : left + j + 4]
        assert (found - expected).abs().max() <= 1e-6 * whole.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("in_channels", [4, 3])
def test_a_window_of_latents_with_its_reach_gives_that_part_of_the_whole_picture(in_channels: int):
    model = small(in_channels=in_channels)
    reach = model.synthesis_reach
    y_hat = some_latents(model, 1, 12, 12).clamp(-30, 30).round()
    whole = model.synthesize(y_hat, told())
    for top, left in ((reach, reach), (3, 5), (12 - reach - 4, 6)):
        window = y_hat[:, :, top - reach : top + 4 + reach, left - reach : left + 4 + reach]
        inside = slice(16 * reach, 16 * (reach + 4))
        found = model.synthesize(window, told())[:, :, inside, inside]
        expected = whole[:, :, 16 * top : 16 * (top + 4), 16 * left : 16 * (left + 4)]
        assert (found - expected).abs().max() <= 1e-6 * whole.abs().max()


@torch.no_grad()
def test_what_lies_beyond_the_reach_changes_nothing_and_what_lies_within_it_does(model: RawCodec):
    x = pictures(model, 1, lattices=(1, 4))
    y = model.analyze(x, told())
    start, reach = 8 * model.stride, model.analysis_reach
    x[..., : start - reach] = 9.0
    assert torch.equal(model.analyze(x, told())[..., 8:], y[..., 8:])
    x[..., start - reach] = 9.0
    assert not torch.equal(model.analyze(x, told())[..., 8], y[..., 8])


@torch.no_grad()
def test_every_condition_reaches_the_latents_and_only_the_encoder_asks_for_the_noise(model: RawCodec):
    x = pictures(model)
    base = model.analyze(x, told(2))
    y_hat = some_latents(model, 2, 4, 8).clamp(-30, 30).round()
    picture = model.synthesize(y_hat, told(2))
    for name, value in {"quality": 40, "strength": 0.5, "a": 1e-4, "offset": 2e-2}.items():
        other = told(2, **{name: value})
        assert (model.analyze(x, other) - base).abs().max() > 1e-3 * base.abs().max(), name
        assert torch.equal(model.synthesize(y_hat, other), picture) == (name in ("strength", "a")), name
    for name, value in {"strength": 0.5, "a": 1e-4, "offset": 2e-2}.items():
        ours, theirs = (model.encode_latents(y_hat, c) for c in (told(2), told(2, **{name: value})))
        assert all(np.array_equal(i.indices, j.indices) for i, j in zip(ours, theirs, strict=True)), name


@torch.no_grad()
def test_each_picture_is_coded_under_its_own_conditions(model: RawCodec):
    x = pictures(model)
    mixed = Conditions(*(torch.tensor(v) for v in ([5.0, 60.0], [0.2, 1.0], [1e-4, 5e-3], [2e-3, 5e-2])))
    together = model(x, mixed, SEEDS)
    for n in (0, 1):
        alone = model(x[n : n + 1], Conditions(*(value[n : n + 1] for value in mixed)), SEEDS[n : n + 1])
        torch.testing.assert_close(alone.picture[0], together.picture[n], rtol=1e-4, atol=1e-5)
        for name in model.streams:
            torch.testing.assert_close(alone.bits[name][0], together.bits[name][n], rtol=1e-4, atol=1e-2)


@torch.no_grad()
def test_a_gain_between_two_knots_is_their_geometric_mean_and_beyond_the_ends_it_stays(model: RawCodec):
    step = 63 / 7  # of eight knots
    low, middle, high = model.y_gain(torch.tensor([2 * step, 2.5 * step, 3 * step]))
    torch.testing.assert_close(middle, (low * high).sqrt())
    below, first, last, beyond = model.y_gain(torch.tensor([-5.0, 0.0, 63.0, 70.0]))
    assert torch.equal(below, first)
    assert torch.equal(last, beyond)


def test_a_fresh_codecs_gains_run_over_their_range_and_cancel():
    model = small_config(gain_range=(2.0, 32.0)).build()
    gains = model.y_gain(torch.tensor([0.0, 31.5, 63.0]))
    torch.testing.assert_close(gains[:, 0].flatten(), torch.tensor([2.0, 8.0, 32.0]))
    torch.testing.assert_close(gains * model.y_inverse_gain(torch.tensor([0.0, 31.5, 63.0])), torch.ones_like(gains))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_channels", [4, 3])
def test_every_weight_has_a_part_in_the_loss(in_channels: int):
    model = small(in_channels=in_channels).train()
    output = model(pictures(model), told(2, quality=20), SEEDS)
    (sum(output.bits.values(), torch.zeros(2)).sum() + 1e3 * output.picture.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_rate_alone_does_not_reach_the_decoder():
    model = small().train()
    sum(model(pictures(model), told(2), SEEDS).bits.values(), torch.zeros(2)).sum().backward()
    for group in model.parameter_groups():
        assert all((p.grad is None) == (group.name == "decoder") for p in group.parameters), group.name


def test_noise_is_a_function_of_its_seed_and_stands_for_rounding_in_the_rate_only(model: RawCodec):
    x = pictures(model)
    with torch.no_grad():
        rounded, first, again, other = (model(x, told(2), seeds) for seeds in (None, SEEDS, SEEDS, SEEDS + 5))
    for output in (first, again, other):
        assert torch.equal(output.picture, rounded.picture)
    for name in model.streams:
        assert torch.equal(first.bits[name], again.bits[name])
        assert not torch.equal(first.bits[name], other.bits[name])
        assert not torch.equal(first.bits[name], rounded.bits[name])


def test_under_autocast_latents_rate_and_picture_are_float32(model: RawCodec):
    x = pictures(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x, told(2), SEEDS)
        y = model.analyze(x, told(2))
        passes = model.encode_latents(y, told(2))
    assert output.picture.dtype == y.dtype == torch.float32
    assert all(bits.dtype == torch.float32 for bits in output.bits.values())
    # What must be exact takes no notice of autocast.
    for ours, theirs in zip(passes, model.encode_latents(y, told(2)), strict=True):
        assert np.array_equal(ours.values, theirs.values)
        assert np.array_equal(ours.indices, theirs.indices)


@torch.no_grad()
def test_a_higher_quality_takes_more_bits_and_gives_the_better_picture(trained: RawCodec):
    clean = pictures(trained, 2, lattices=(2, 2), seed=900).clamp(0, 1)
    noisy = add_poisson_gaussian(clean, 2e-3, 1e-5, generator=seeded())
    rates, errors = [], []
    for quality in (0, 9, 18, 27, 36, 45, 54, 63):
        output = trained(noisy, told(2, quality=quality), None)
        rates.append(float(sum(bits.sum() for bits in output.bits.values())))
        errors.append(float((pack_cfa(sample_cfa(output.picture)) - clean).square().mean()))
    assert rates == sorted(rates)
    assert rates[-1] > 3 * rates[0]
    assert errors[-1] < errors[0]


# --- latents and whole numbers ----------------------------------------------------------------------------------------


@every_quality
@pytest.mark.parametrize(("num_tiles", "height", "width"), [(1, 4, 4), (3, 4, 12), (5, 8, 4)])
def test_what_is_decoded_is_symbols_and_means_at_most_half_a_step_from_the_latents(
    model: RawCodec, quality: float, num_tiles: int, height: int, width: int
):
    conditions = told(quality=quality)
    y = some_latents(model, num_tiles, height, width)
    passes = model.encode_latents(y, conditions)
    y_hat = decoded(model, passes, y.shape, conditions)
    values, indices = (laid_out(passes, name, y.shape) for name in ("values", "indices"))
    is_certain = indices == CERTAIN
    assert not values[is_certain].any()
    means = y_hat.double().numpy() - values
    assert np.array_equal(means * 16, np.floor(means * 16))
    # A latent of a million has steps of 1/16 of its own.
    distance = np.abs((y_hat.double() - y.double()).numpy())[~is_certain]
    assert (distance <= 0.5 + np.spacing(np.abs(y.numpy())[~is_certain])).all()
    assert np.abs(values).max() > 9e5
    assert len(np.unique(indices)) > 5


def test_latents_beyond_what_a_symbol_holds_stop_there_and_decode_all_the_same(
    model: RawCodec, tables: FrequencyTables
):
    y = 1e9 * torch.randn(2, 8, 4, 4, generator=seeded())
    passes = model.encode_latents(y, told())
    y_hat = decoded(model, passes, y.shape, told())
    assert np.abs(laid_out(passes, "values", y.shape)).max() == 2**20
    streams = encode_tiles(model, tables, y, told()).streams
    assert torch.equal(decode_tiles(model, tables, streams, 4, 4, told()), y_hat)


def test_latents_of_zero_are_coded_too(model: RawCodec, tables: FrequencyTables):
    y = torch.zeros(3, 8, 8, 8)
    coded = encode_tiles(model, tables, y, told())
    y_hat = decode_tiles(model, tables, coded.streams, 8, 8, told())
    assert (y_hat - y).abs().max() <= 0.5
    assert coded.streams[0] == coded.streams[1] == coded.streams[2]


@every_quality
def test_latents_survive_the_bytes_of_their_streams(model: RawCodec, tables: FrequencyTables, quality: float):
    conditions = told(quality=quality)
    y = some_latents(model, 3, 8, 12)
    coded = encode_tiles(model, tables, y, conditions)
    found = decode_tiles(model, tables, coded.streams, 8, 12, conditions)
    assert torch.equal(found, decoded(model, model.encode_latents(y, conditions), y.shape, conditions))
    assert coded.estimated_bits.shape == (3, 3)


def test_a_tile_is_coded_and_decoded_as_it_is_alone(model: RawCodec, tables: FrequencyTables):
    y = some_latents(model, 5, 4, 8)
    together = encode_tiles(model, tables, y, told())
    all_tiles = decode_tiles(model, tables, together.streams, 4, 8, told())
    for tile in range(5):
        (streams,) = encode_tiles(model, tables, y[tile : tile + 1], told()).streams
        assert streams == together.streams[tile]
        assert torch.equal(decode_tiles(model, tables, [streams], 4, 8, told()), all_tiles[tile : tile + 1])


def test_tiles_of_different_qualities_can_be_coded_together(model: RawCodec, tables: FrequencyTables):
    y = some_latents(model, 2, 4, 8)
    mixed = told(2)._replace(quality=torch.tensor([3.0, 50.0]))
    together = encode_tiles(model, tables, y, mixed).streams
    for tile, quality in enumerate((3.0, 50.0)):
        assert encode_tiles(model, tables, y[tile : tile + 1], told(quality=quality)).streams == [together[tile]]


def test_the_two_passes_are_a_checkerboard_that_covers_every_latent_once():
    model = small()
    with torch.no_grad():
        for layer in (model.hyper_head.layer, model.context.predict.layer):
            layer.weight.zero_()
            layer.bias[:8] = 0.0  # every mean
    fill = {0: 0, 1: 1, 2: 2}  # by pass
    for height, width in ((4, 4), (8, 12)):
        number = iter(fill)
        y_hat = model.decode_latents(2, height, width, told(), lambda i, n=number: np.full_like(i, fill[next(n)]))
        first = first_pass(height, width, 8)
        assert np.array_equal(y_hat.numpy(), np.broadcast_to(np.where(first, 1, 2), (2, 8, height, width)))
        assert first.sum() == first.size / 2
        # Whatever comes second has its neighbours from the first pass on all sides.
        assert (first[:, 1:] != first[:, :-1]).all()
        assert (first[:, :, 1:] != first[:, :, :-1]).all()


def test_the_second_pass_sees_the_first_and_the_first_only_the_hyper_latents(model: RawCodec):
    passes = model.encode_latents(some_latents(model, 1, 8, 8).clamp(-9, 9), told())

    def indices_when(changed_pass: int) -> list[np.ndarray]:
        values = [p.values.copy() for p in passes]
        values[changed_pass] += 6
        kept: list[np.ndarray] = []

        def read(indices: np.ndarray) -> np.ndarray:
            kept.append(indices)
            return values[len(kept) - 1]

        model.decode_latents(1, 8, 8, told(), read)
        return kept

    for changed_pass in range(3):
        same = [np.array_equal(i, p.indices) for i, p in zip(indices_when(changed_pass), passes, strict=True)]
        assert same == [[True, False, False], [True, True, False], [True, True, True]][changed_pass]


def test_a_latent_that_is_certain_is_at_its_mean_and_costs_nothing():
    model = small()
    with torch.no_grad():
        for layer in (model.hyper_head.layer, model.context.predict.layer):
            layer.bias[8:] = -40.0  # every index far below the first
    y = some_latents(model, 2, 4, 8).clamp(-9, 9)
    passes = model.encode_latents(y, told())
    y_hat = decoded(model, passes, y.shape, told())
    for coded in passes[1:]:
        assert (coded.indices == CERTAIN).all()
        assert not coded.values.any()
        assert not coded.bits.any()
    assert len(np.unique(y_hat.numpy())) > 3
    streams = encode_tiles(model, model.frequency_tables(), y, told()).streams
    assert all(len(tile[1]) == len(tile[2]) == 0 for tile in streams)


def test_only_the_certain_table_is_certain(tables: FrequencyTables):
    assert tables.num_tables == 64
    assert (tables.frequencies.max(axis=1) == TOTAL).nonzero()[0].tolist() == [CERTAIN]


@torch.no_grad()
@every_quality
def test_the_rate_of_training_is_that_of_coding_but_for_what_is_certain(trained: RawCodec, quality: float):
    x = pictures(trained, 2, lattices=(3, 4))
    conditions = told(2, quality=quality)
    bits = trained(x, conditions, None).bits
    passes = trained.encode_latents(trained.analyze(x, conditions), conditions)
    for name, coded in zip(trained.streams, passes, strict=True):
        assert coded.bits == pytest.approx(bits[name].numpy(), rel=2e-3, abs=0.1)
        assert (coded.bits <= bits[name].numpy() + 1e-2 * len(coded.bits)).all()


@pytest.fixture(scope="module")
def sure() -> RawCodec:
    """A codec whose hyper-latents are always 0, so that latents can be drawn that it predicts rightly."""
    model = small(latents=32)
    with torch.no_grad():
        for parameter in model.hyper_analysis[-1].parameters():
            parameter.zero_()
        model.hyper_head.layer.bias[32:] = torch.linspace(0, 6, 32)  # scales from one end of the ladder to the other
        model.context.predict.layer.bias[32:] = torch.linspace(6, 0, 32)
    return model


@every_quality
def test_bytes_of_latents_that_are_predicted_rightly_are_the_estimate_but_for_a_percent_and_the_lanes(
    sure: RawCodec, quality: float
):
    """A stream has a byte for the number of its lanes, and each lane three bytes that are not values."""
    random = np.random.default_rng(0)
    number = iter(range(3))

    def draw(indices: np.ndarray) -> np.ndarray:
        scales = np.array(scale_ladder())[indices] * (indices != CERTAIN)
        return np.rint(random.normal(size=indices.shape) * scales).astype(np.int32) * (next(number) > 0)

    y = sure.decode_latents(2, 32, 32, told(quality=quality), draw)
    tables = sure.frequency_tables()
    coded = encode_tiles(sure, tables, y, told(quality=quality))
    assert torch.equal(decode_tiles(sure, tables, coded.streams, 32, 32, told(quality=quality)), y)
    for tile, bits in zip(coded.streams, coded.estimated_bits, strict=True):
        for stream, estimate in zip(tile[1:], bits[1:], strict=True):
            lanes = 8 * (4 * stream[0] - 3)  # beyond what every stream costs
            assert 0.99 * estimate <= 8 * len(stream) <= 1.01 * estimate + lanes
            assert lanes < 0.02 * estimate
        assert 8 * sum(map(len, tile)) == pytest.approx(bits.sum(), rel=0.02)
    passes = sure.encode_latents(y, told(quality=quality))
    for coded_pass in passes[1:]:
        ideal = ideal_bits(coded_pass.values.ravel(), coded_pass.indices.ravel(), tables)
        assert ideal == pytest.approx(coded_pass.bits.sum(), rel=0.002)


def test_a_damaged_stream_names_its_tile(model: RawCodec, tables: FrequencyTables):
    streams = [list(tile) for tile in encode_tiles(model, tables, some_latents(model, 3, 8, 8), told()).streams]
    streams[1][2] = streams[1][2][:-2]
    with pytest.raises(CorruptStreamError) as caught:
        decode_tiles(model, tables, streams, 8, 8, told())
    assert caught.value.stream == 1


def test_whole_qualities_are_what_the_hyper_latents_tables_go_by(model: RawCodec):
    """A fraction is rounded, halves up, so that no product of it needs to be."""
    z = torch.zeros(1, 4, 2, 2)
    with torch.no_grad():
        model.z_index.coefficients[1:] = torch.tensor([[20.0], [-7.0]])
        of = {q: model.z_index(torch.tensor([q]), z) for q in (31.0, 31.4, 31.5, 32.0, -3.0, 0.0, 63.0, 80.0)}
    assert torch.equal(of[31.0], of[31.4])
    assert torch.equal(of[31.5], of[32.0])
    assert torch.equal(of[-3.0], of[0.0])
    assert torch.equal(of[63.0], of[80.0])
    assert not torch.equal(of[0.0], of[63.0])
    assert torch.equal(of[63.0], of[63.0].round())


# --- the same on every machine ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> tuple[RawCodec, FrequencyTables, dict[str, Tensor]]:
    stored = load_file(FOLDER / "golden.safetensors")
    model = rawcodec.Config.model_validate(GOLDEN["config"]).build().eval().requires_grad_(False)
    prefix = "model."
    model.load_state_dict({name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)})
    sizes, smallest = (stored[f"tables.{name}"].numpy() for name in ("sizes", "smallest"))
    frequencies = np.zeros((len(sizes), sizes.max()), np.int64)
    frequencies[np.arange(sizes.max()) < sizes[:, None]] = stored["tables.frequencies"].numpy()
    return model, FrequencyTables(frequencies, smallest, sizes), stored  # pyright: ignore[reportArgumentType]


def golden_latents(golden: tuple[RawCodec, FrequencyTables, dict[str, Tensor]], name: str) -> Tensor:
    model, tables, stored = golden
    case = GOLDEN["cases"][name]
    streams = [
        [stored[f"{name}.{tile}.{stream}"].numpy().tobytes() for stream in model.streams]
        for tile in range(case["tiles"])
    ]
    return decode_tiles(model, tables, streams, case["height"], case["width"], told(quality=case["quality"]))


def test_the_golden_tables_are_those_of_the_streams(golden: tuple[RawCodec, FrequencyTables, dict[str, Tensor]]):
    assert golden[1].digest == GOLDEN["tables_sha256"]


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_golden_streams_decode_to_the_same_latents_however_they_are_computed(
    golden: tuple[RawCodec, FrequencyTables, dict[str, Tensor]], name: str
):
    expected = GOLDEN["cases"][name]["latents_sha256"]
    for channels_last, onednn, threads in itertools.product((False, True), (True, False), (1, 2)):
        with computed_with(channels_last=channels_last, onednn=onednn, threads=threads, model=golden[0]):
            assert sha256(golden_latents(golden, name)) == expected, (channels_last, onednn, threads)


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_golden_latents_are_made_of_the_golden_symbols(
    golden: tuple[RawCodec, FrequencyTables, dict[str, Tensor]], name: str
):
    model, tables, stored = golden
    case = GOLDEN["cases"][name]
    symbols: list[np.ndarray] = []

    def read(indices: np.ndarray) -> np.ndarray:
        stream = model.streams[len(symbols)]
        pairs = [(stored[f"{name}.{tile}.{stream}"].numpy().tobytes(), own) for tile, own in enumerate(indices)]
        symbols.append(np.stack(rans.decode(pairs, tables)))
        return symbols[-1]

    model.decode_latents(case["tiles"], case["height"], case["width"], told(quality=case["quality"]), read)
    assert [sha256(values.astype(np.int32)) for values in symbols] == case["symbols_sha256"]


@every_quality
def test_any_codec_decodes_alike_however_it_is_computed(model: RawCodec, tables: FrequencyTables, quality: float):
    conditions = told(quality=quality)
    streams = encode_tiles(model, tables, some_latents(model, 3, 8, 12), conditions).streams
    hashes = set()
    for channels_last, onednn, threads in itertools.product((False, True), (True, False), (1, 2)):
        with computed_with(channels_last=channels_last, onednn=onednn, threads=threads, model=model):
            hashes.add(sha256(decode_tiles(model, tables, streams, 8, 12, conditions)))
    assert len(hashes) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is no c++")
def test_compiled_it_decodes_golden_streams_to_the_same_latents(
    golden: tuple[RawCodec, FrequencyTables, dict[str, Tensor]],
):
    """The context alone, which has every kind of exact layer: compiling is slow."""
    model, context = golden[0], golden[0].context
    try:
        model.context = torch.compile(context, dynamic=False, fullgraph=True)
        assert sha256(golden_latents(golden, "middle")) == GOLDEN["cases"]["middle"]["latents_sha256"]
    finally:
        model.context = context
