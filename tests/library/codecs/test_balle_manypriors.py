from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from library.codecs import balle_manypriors
from library.codecs.balle_manypriors import BalleManyPriors
from library.config import validate
from library.entropy import rans
from library.entropy.rans import CorruptStreamError
from library.entropy.tables import TOTAL, FrequencyTables, ideal_bits
from library.errors import ConfigError
from library.models.blocks.codec import Conditions, Passed
from library.models.blocks.competing_priors import CompetingPriors

ROOT = Path(__file__).resolve().parents[3]
HEADS: dict[str, dict[str, Any]] = {
    "picture": {"in_channels": 3, "head": "balle"},
    "pixelshuffle": {},
    "transposed": {"head": "transposed"},
    "preupsampled": {"head": "balle", "preupsample": True},
}
every_head = pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS.keys())
SEEDS = torch.tensor([11, 12])


def small(settings: dict[str, Any] | None = None, **more: Any) -> BalleManyPriors:
    config = balle_manypriors.Config(**{"hidden": 8, "latents": 8, "num_priors": 4, **(settings or {}), **more})
    torch.manual_seed(0)
    return config.build()


def told(num_pictures: int = 2) -> Conditions:
    """Conditions, of which this codec takes nothing."""
    return Conditions(*(torch.ones(num_pictures) for _ in Conditions._fields))


def pictures(model: BalleManyPriors, num_pictures: int = 2, *, latents: tuple[int, int] = (4, 6)) -> Tensor:
    """Scene-linear with values below 0 and above 1."""
    height, width = (n * model.lattice for n in latents)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num_pictures, model.in_channels, height, width, generator=generator) * 1.2 - 0.1


def spread_priors(model: BalleManyPriors) -> None:
    """Priors that differ, narrow enough for latents of a few steps, and used unequally."""
    num_priors = model.config.num_priors
    with torch.no_grad():
        model.priors.curves.add_(
            0.3 * torch.randn(model.priors.curves.shape, generator=torch.Generator().manual_seed(2))
        )
        model.priors.curves[:, :4] += torch.linspace(0.5, 1.5, num_priors)[:, None, None]
        model.priors.usage.copy_(torch.arange(1.0, num_priors + 1) / sum(range(num_priors + 1)))


def some_latents(model: BalleManyPriors, num_tiles: int = 3, side: int = 8) -> Tensor:
    shape = (num_tiles, model.latent_channels, side, side)
    generator = torch.Generator().manual_seed(3)
    size = torch.rand(num_tiles, 1, side, side, generator=generator) * 4
    return torch.randn(shape, generator=generator) * size


def decoded(model: BalleManyPriors, passes: list[Passed], shape: torch.Size) -> Tensor:
    """What the model makes of these passes when it is given them, each for the tables it was coded with."""
    coming = iter(passes)

    def read(indices: np.ndarray) -> np.ndarray:
        expected = next(coming)
        assert np.array_equal(indices, expected.indices)
        return expected.values

    y_hat = model.decode_latents(shape[0], shape[2], shape[3], told(shape[0]), read)
    assert next(coming, None) is None
    return y_hat


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts", "gmacs"),
    [
        (HEADS["picture"], (3.51, 3.51, 7.24), (98, 98)),
        (HEADS["pixelshuffle"], (3.51, 4.42, 8.15), (25, 85)),
        (HEADS["transposed"], (3.51, 4.43, 8.16), (25, 88)),
        (HEADS["preupsampled"], (3.51, 3.51, 7.24), (99.5, 98.5)),
    ],
    ids=HEADS.keys(),
)
def test_parameters_and_work_are_those_of_the_published_models(
    settings: dict[str, Any], parts: tuple[float, ...], gmacs: tuple[float, ...]
):
    """Millions of parameters of encoder, decoder and all; GMAC for 2^20 pixels of encoder and decoder."""
    with torch.device("meta"):
        model = balle_manypriors.Config(**settings).build()
    sizes = {group.name: sum(p.numel() for p in group.parameters) for group in model.parameter_groups()}
    assert sizes["entropy"] == 225_280
    counted = (sizes["encoder"] / 1e6, sizes["decoder"] / 1e6, model.num_parameters / 1e6)
    assert counted == pytest.approx(parts, rel=0.002)
    macs = model.macs_per_pixel
    assert (macs["encoder"] * 2**20 / 1e9, macs["decoder"] * 2**20 / 1e9) == pytest.approx(gmacs, rel=0.01)


@every_head
def test_a_picture_comes_back_at_full_resolution_with_a_rate_for_each(settings: dict[str, Any]):
    model = small(settings)
    x = pictures(model)
    for seeds in (None, SEEDS):
        output = model(x, told(), seeds)
        assert output.picture.shape == (2, 3, model.scale * x.shape[2], model.scale * x.shape[3])
        assert output.picture.dtype == torch.float32
        assert tuple(output.bits) == model.streams
        for bits in output.bits.values():
            assert bits.shape == (2,)
            assert (bits > 0).all()


@every_head
def test_a_latent_stands_for_sixteen_pixels_of_what_the_first_layer_sees(settings: dict[str, Any]):
    model = small(settings)
    assert model.config.lattice == model.lattice == model.stride
    assert model.stride * (2 if settings.get("preupsample") else 1) == 16
    assert model.analyze(pictures(model), told()).shape == (2, 8, 4, 6)
    assert model.config.num_qualities == 1


@every_head
@torch.no_grad()
def test_nothing_beyond_the_reach_that_the_thinnest_such_codec_tells_changes_a_latent_or_a_pixel(
    settings: dict[str, Any],
):
    model = small(settings).eval()
    stride, reach = model.stride, model.analysis_reach
    x = pictures(model, 1, latents=(1, 16))
    y = model.analyze(x, told(1))
    x[..., : 8 * stride - reach], x[..., 9 * stride + reach :] = 9.0, 9.0
    assert torch.equal(model.analyze(x, told(1))[..., 8], y[..., 8])
    assert not torch.equal(model.analyze(x, told(1))[..., 7], y[..., 7])
    per_latent, reach = stride * model.scale, model.synthesis_reach
    pixels = slice(8 * per_latent, 9 * per_latent)
    picture = model.synthesize(y, told(1))[..., pixels]
    y[..., : 8 - reach], y[..., 9 + reach :] = 9.0, 9.0
    assert torch.equal(model.synthesize(y, told(1))[..., pixels], picture)
    y[..., 8 + reach] = 9.0
    assert not torch.equal(model.synthesize(y, told(1))[..., pixels], picture)


def test_nothing_is_clamped():
    model = small()
    with torch.no_grad():
        for seeds in (None, SEEDS):
            before = model(pictures(model), told(), seeds).picture
            model.g_s[-2].bias.add_(7.0)
            torch.testing.assert_close(model(pictures(model), told(), seeds).picture, before + 7)
            assert before.min() < 0
            assert before.max() > 1


def test_under_autocast_latents_rate_and_picture_are_float32():
    model = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(pictures(model), told(), SEEDS)
        assert model.analyze(pictures(model), told()).dtype == torch.float32
    assert output.picture.dtype == torch.float32
    assert all(bits.dtype == torch.float32 for bits in output.bits.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": "balle"}, "head 'balle' does not fit in_channels 4 without preupsample"),
        ({"in_channels": 3}, "head 'pixelshuffle' does not fit in_channels 3"),
        ({"preupsample": True}, "head 'pixelshuffle' does not fit in_channels 4 with preupsample"),
        ({"in_channels": 3, "head": "balle", "preupsample": True}, "preupsample is for packed input"),
        ({"lattents": 3}, "did you mean 'latents'"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(settings: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        validate(balle_manypriors.Config, settings, "test")


def test_a_config_crosses_a_process_boundary_as_json():
    config = small(HEADS["preupsampled"]).config
    assert validate(balle_manypriors.Config, json.loads(config.model_dump_json()), "worker") == config


def test_every_parameter_is_in_one_part_and_the_entropy_model_learns_ten_times_as_fast():
    model = small()
    groups = model.parameter_groups()
    assert model.config.parts == tuple(group.name for group in groups) == ("encoder", "entropy", "decoder")
    assert [group.lr_multiplier for group in groups] == [1.0, 10.0, 1.0]
    assert {id(p) for group in groups for p in group.parameters} == {id(p) for p in model.parameters()}


# --- training ---------------------------------------------------------------------------------------------------------


def loss_of(model: BalleManyPriors, x: Tensor, seeds: Tensor) -> Tensor:
    output = model(x, told(len(x)), seeds)
    rate = sum(output.bits.values(), torch.zeros(len(x))).mean() / output.picture[0].numel()
    return 10 * (output.picture - 0.25).square().mean() + rate


def test_a_few_steps_lower_the_loss_and_every_weight_takes_part():
    model = small()
    x = pictures(model)
    groups = [{"params": g.parameters, "lr": 1e-3 * g.lr_multiplier} for g in model.parameter_groups()]
    optimizer = torch.optim.Adam(groups)
    losses = []
    for _ in range(8):
        loss = loss_of(model, x, SEEDS)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_rate_alone_reaches_encoder_and_priors_but_not_the_decoder():
    model = small()
    sum(model(pictures(model), told(), SEEDS).bits.values(), torch.zeros(2)).sum().backward()
    assert model.g_a[0].weight.grad.any()
    assert model.priors.curves.grad.any()
    assert all(p.grad is None for p in model.g_s.parameters())


def test_a_picture_is_treated_in_a_batch_as_it_is_alone_whatever_its_neighbours_draw():
    model = small(revive_unused_for=0).train()
    model.priors.unused_for.fill_(5)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = pictures(model)
    both = model(x, told(), SEEDS)
    for i in (0, 1):
        model.load_state_dict(state)
        torch.manual_seed(i)
        alone = model(x[i : i + 1], told(1), SEEDS[i : i + 1])
        torch.testing.assert_close(alone.picture[0], both.picture[i])
        for name in model.streams:
            torch.testing.assert_close(alone.bits[name][0], both.bits[name][i])


def test_the_synthesis_sees_rounded_latents_and_the_rate_noisy_ones():
    model = small().eval()
    spread_priors(model)
    x = pictures(model)
    with torch.no_grad():
        rounded, noisy, other = (model(x, told(), seeds) for seeds in (None, SEEDS, SEEDS + 5))
        y_hat = torch.floor(model.analyze(x, told()) + 0.5)
        assert torch.equal(model.synthesize(y_hat, told()), rounded.picture)
    assert torch.equal(noisy.picture, rounded.picture)
    assert len({float(output.bits["y"][0]) for output in (rounded, noisy, other)}) == 3


def test_a_position_keeps_the_bits_of_its_cheapest_prior_with_their_gradient():
    priors = CompetingPriors(5, 3, revive_unused_for=50, revive_share=0.1)
    with torch.no_grad():
        priors.curves.normal_(std=0.7, generator=torch.Generator().manual_seed(1))
    q = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 3
    choice, _, cost = priors(q, None)
    each = torch.stack([priors._bits_under(torch.full_like(choice, k), q.movedim(1, -1)) for k in range(5)])
    torch.testing.assert_close(cost, each.amin(dim=0))
    assert torch.equal(choice, each.argmin(dim=0))
    assert len(choice.unique()) > 2
    (ours,) = torch.autograd.grad(cost.sum(), priors.curves)
    (theirs,) = torch.autograd.grad(each.amin(dim=0).sum(), priors.curves)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_graph_is_kept_of_the_priors_that_were_not_taken():
    """Or memory would grow with their number, which is what made the research code large."""

    def kept(num_priors: int) -> int:
        priors = CompetingPriors(num_priors, 4, revive_unused_for=50, revive_share=0.1)
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            priors(torch.zeros(1, 4, 32, 32, requires_grad=True), torch.tensor([1]))
        return sum(sizes)

    # Each more prior adds its own 11 x 4 curve parameters a few times, not 4 x 32 x 32 likelihoods.
    assert (kept(64) - kept(2)) / 62 < 11 * 4 * 4


# --- usage and revival ------------------------------------------------------------------------------------------------


def dying() -> CompetingPriors:
    """Three priors, of which the first is the best for all that is small, and the others expect it far away."""
    priors = CompetingPriors(3, 2, revive_unused_for=2, revive_share=0.25)
    with torch.no_grad():
        priors.curves[:, 4] = torch.tensor([0.0, 30.0, -30.0])[:, None]
    return priors.train()


def test_a_prior_that_is_taken_nowhere_for_long_is_given_the_dearest_positions():
    priors = dying()
    q = torch.zeros(1, 2, 4, 4)
    q[0, :, 1, 2], q[0, :, 3, 0] = 3.0, -4.0
    for _ in range(3):
        choice, _, _ = priors(q, torch.tensor([1]))
        assert not choice.any()
    choice, _, bits = priors(q, torch.tensor([1]))
    assert sorted(choice.flatten().tolist())[-2:] == [1, 2]
    assert {tuple(p) for p in choice[0].nonzero().tolist()} == {(1, 2), (3, 0)}
    bits.sum().backward()
    assert priors.curves.grad is not None
    assert priors.curves.grad.flatten(1).any(dim=1).all()


def test_positions_given_away_do_not_count_as_use_and_those_taken_do():
    priors = dying()
    small_values, far = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    far[0, :, 0, 0] = -43.0  # where the second prior's first slope puts its middle
    for passes in range(1, 6):
        priors(small_values, torch.tensor([passes]))
        assert priors.unused_for.tolist() == [0, passes, passes]
    priors(far, torch.tensor([9]))
    assert priors.unused_for.tolist() == [0, 0, 6]


def test_no_more_than_the_share_of_a_pictures_positions_is_given_away():
    priors = CompetingPriors(40, 2, revive_unused_for=0, revive_share=0.1)
    priors.unused_for.fill_(1)
    q = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    cheapest, _ = priors.cheapest(q.movedim(1, -1))
    state = {name: tensor.clone() for name, tensor in priors.state_dict().items()}
    choices = []
    for seed in (1, 1, 2):
        priors.load_state_dict(state)
        choices.append(priors(q, torch.tensor([seed, seed + 7])).choice)
    assert (choices[0] != cheapest).flatten(1).sum(dim=1).tolist() == [4, 4]
    assert torch.equal(choices[0], choices[1])
    assert not torch.equal(choices[0], choices[2])


def test_in_evaluation_and_in_a_file_nothing_is_counted_or_given_away():
    priors = dying()
    priors.unused_for.fill_(9)
    before = {name: tensor.clone() for name, tensor in priors.state_dict().items()}
    q = torch.zeros(1, 2, 4, 4)
    assert not priors.as_coded(q).choice.any()
    for seeds in (torch.tensor([1]), None):
        assert not priors.eval()(q, seeds).choice.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in priors.state_dict().items())


def test_while_training_on_rounded_latents_use_is_counted_but_nothing_given_away():
    priors = dying()
    priors.unused_for.fill_(9)
    assert not priors(torch.zeros(1, 2, 4, 4), None).choice.any()
    assert priors.unused_for.tolist() == [0, 10, 10]
    assert priors.usage[0] > 1 / 3


def test_an_index_comes_to_cost_what_its_frequency_says_and_never_too_much():
    priors = dying()
    assert priors(torch.zeros(1, 2, 2, 2), None).of_choice.unique().tolist() == pytest.approx([np.log2(3)])
    priors.revive_share = 0.0
    for _ in range(400):
        priors(torch.zeros(1, 2, 2, 2), torch.tensor([0]))
    torch.testing.assert_close(priors.index_probabilities.sum(), torch.tensor(1.0))
    cost = -priors.index_probabilities.log2()
    assert cost[0] < 0.1
    assert cost.max() < 6 + np.log2(3)


def test_all_that_is_learned_and_counted_is_in_the_state_so_that_a_resumed_run_is_the_same():
    def step(model: BalleManyPriors, optimizer: torch.optim.Optimizer, number: int) -> None:
        optimizer.zero_grad()
        loss_of(model, x, SEEDS + 10 * number).backward()
        optimizer.step()

    whole, resumed = small(revive_unused_for=1).train(), small(revive_unused_for=1).train()
    x = pictures(whole)
    optimizer = torch.optim.Adam(whole.parameters(), lr=1e-3)
    for number in range(3):
        step(whole, optimizer, number)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    assert (whole.priors.unused_for > 1).any()
    resumed.load_state_dict(state)
    again = torch.optim.Adam(resumed.parameters(), lr=1e-3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(99)
    for number in range(3, 6):
        step(whole, optimizer, number)
        step(resumed, again, number)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


_WORKER = """
import sys, torch, torch.distributed as dist
from library.models.blocks.competing_priors import CompetingPriors
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
for size in (1, 2):
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    torch.manual_seed(0)
    priors = CompetingPriors(6, 3, revive_unused_for=1, revive_share=0.25).train()
    q = torch.randn(5, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    share = slice(rank * 2, rank * 2 + 2) if size > 1 else slice(4)
    choices = [priors(q[step, share], torch.arange(4)[share] + 10 * step).choice for step in range(5)]
    torch.save({"choices": choices, **priors.state_dict()}, f"{folder}/{size}-{rank}.pt")
dist.destroy_process_group()
"""


def test_two_workers_choose_revive_and_count_as_one_does(tmp_path: Path):
    workers = [subprocess.Popen([sys.executable, "-c", _WORKER, str(rank), str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for whole, *parts in zip(one["choices"], first["choices"], second["choices"], strict=True):
        assert torch.equal(whole, torch.cat(parts))
    for name in ("unused_for", "usage"):
        assert torch.equal(one[name], first[name])
        assert torch.equal(one[name], second[name])
    assert one["unused_for"].max() > 1


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> BalleManyPriors:
    model = small().eval()
    spread_priors(model)
    return model


@pytest.fixture(scope="module")
def tables(trained: BalleManyPriors) -> FrequencyTables:
    return trained.frequency_tables()


def test_what_is_decoded_is_the_rounded_latents_exactly(trained: BalleManyPriors):
    y = some_latents(trained)
    passes = trained.encode_latents(y, told(3))
    assert len(passes) == len(trained.streams)
    y_hat = decoded(trained, passes, y.shape)
    assert y_hat.dtype == torch.float32
    assert torch.equal(y_hat, torch.floor(y + 0.5))


def test_latents_survive_the_bytes_of_a_stream(trained: BalleManyPriors, tables: FrequencyTables):
    y = some_latents(trained)
    y[0, 0, 0, 0], y[1, 3, 2, 2] = 5000.0, -777.0  # beyond every table
    streams = [
        rans.encode(list(zip(coded.values, coded.indices, strict=True)), tables)
        for coded in trained.encode_latents(y, told(3))
    ]
    coming = iter(streams)

    def read(indices: np.ndarray) -> np.ndarray:
        return np.stack(rans.decode(list(zip(next(coming), indices, strict=True)), tables))

    assert torch.equal(trained.decode_latents(3, 8, 8, told(3), read), torch.floor(y + 0.5))


def test_a_tile_is_coded_as_it_is_alone(trained: BalleManyPriors):
    y = some_latents(trained)
    together, alone = trained.encode_latents(y, told(3)), trained.encode_latents(y[1:2], told(1))
    for all_tiles, one in zip(together, alone, strict=True):
        assert np.array_equal(all_tiles.values[1:2], one.values)
        assert np.array_equal(all_tiles.indices[1:2], one.indices)


def test_the_rate_that_is_estimated_is_the_rate_of_the_stream_with_its_side_information(
    trained: BalleManyPriors, tables: FrequencyTables
):
    with torch.no_grad():
        # Darker to the left, so that there is work for every prior.
        x = pictures(trained, latents=(16, 24))
        x = x * torch.logspace(-2.5, 1, x.shape[3])
        output = trained(x, told(), None)
        passes = trained.encode_latents(trained.analyze(x, told()), told())
    assert len(np.unique(passes[0].values)) > 2
    assert np.abs(passes[1].values).max() > 3
    for name, coded in zip(trained.streams, passes, strict=True):
        assert coded.bits == pytest.approx(output.bits[name].numpy(), rel=1e-5)
        assert ideal_bits(coded.values.ravel(), coded.indices.ravel(), tables) == pytest.approx(
            coded.bits.sum(), rel=0.01
        )


@torch.no_grad()
def test_tables_follow_the_distributions_and_leave_little_to_the_escape(
    trained: BalleManyPriors, tables: FrequencyTables
):
    num_priors, channels = trained.config.num_priors, trained.latent_channels
    assert tables.num_tables == num_priors * channels + 1
    for row in range(num_priors * channels):
        prior, channel = divmod(row, channels)
        num_values = int(tables.sizes[row]) - 1
        # Integers of this channel, the others at 0; the sum's part of this channel is what is above that at 0.
        q = torch.zeros(num_values, channels)
        q[:, channel] = torch.arange(num_values) + int(tables.smallest[row])
        relative = trained.priors._bits_under(torch.full((num_values,), prior), q).double()
        relative = torch.exp2(relative.min() - relative)
        frequencies = tables.frequencies[row].astype(np.float64) / TOTAL
        assert frequencies[num_values] <= 3 / TOTAL
        np.testing.assert_allclose(frequencies[:num_values], relative / relative.sum(), atol=2e-3)


def test_a_distribution_too_wide_for_a_table_keeps_what_lies_around_its_middle_and_codes_the_rest():
    model = small(num_priors=2).eval()
    with torch.no_grad():
        model.priors.curves[:, :4] = -1.5  # slopes of 0.2 in four layers: hundreds of steps wide
        model.priors.curves[1, 4] = -500.0
    tables = model.frequency_tables()
    middle = tables.smallest[:-1] + 127
    assert (tables.sizes[:-1] == 256).all()
    assert (np.abs(middle[:8]) <= 30).all()
    assert (middle[8:] > 1000).all()
    y = 300 * torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    for coded in model.encode_latents(y, told(1)):
        streams = rans.encode([(coded.values[0], coded.indices[0])], tables)
        assert np.array_equal(rans.decode([(streams[0], coded.indices[0])], tables)[0], coded.values[0])


def test_no_distribution_is_so_sharp_that_another_value_could_not_be_coded():
    model = small(num_priors=2).eval()
    with torch.no_grad():
        model.priors.curves[:, :4] = 40.0
    tables = model.frequency_tables()
    assert (tables.sizes[:-1] == 2).all()
    assert (tables.certain_symbol == -1).all()
    coded = model.encode_latents(torch.full((1, 8, 1, 1), 4.0), told(1))[1]
    streams = rans.encode([(coded.values[0], coded.indices[0])], tables)
    assert (rans.decode([(streams[0], coded.indices[0])], tables)[0] == 4).all()


def test_a_single_prior_costs_nothing_to_name():
    model = small(num_priors=1).eval()
    tables = model.frequency_tables()
    coded = model.encode_latents(some_latents(model), told(3))[0]
    assert not coded.bits.any()
    assert rans.encode(list(zip(coded.values, coded.indices, strict=True)), tables)[0] == b""


def test_a_stream_that_names_no_prior_is_refused_with_its_tile(trained: BalleManyPriors):
    def read(indices: np.ndarray) -> np.ndarray:
        values = np.zeros_like(indices)
        values[1, 3] = 4
        return values

    with pytest.raises(CorruptStreamError, match="beyond the 4") as caught:
        trained.decode_latents(2, 8, 8, told(), read)
    assert caught.value.stream == 1


def test_a_codec_saved_and_loaded_has_the_same_tables(trained: BalleManyPriors, tables: FrequencyTables):
    other = trained.config.build().eval()
    assert other.frequency_tables().digest != tables.digest
    other.load_state_dict(trained.state_dict())
    assert other.frequency_tables().digest == tables.digest
