from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.fixed_point import (
    ACTIVATION_STEP,
    LARGEST_ACTIVATION,
    FixedDepthwise,
    FixedPointwise,
    exact_weights,
    quantize_activation,
    quantize_to,
)

Layer = FixedPointwise | FixedDepthwise
CHANNELS = 24
weight_sizes = pytest.mark.parametrize("weight_size", [1e-12, 1e-3, 0.3, 5.0, 1e3, 1e6, 1e12])
bias_sizes = pytest.mark.parametrize("bias_size", [0.0, 0.2, 30.0, 1e5])
layers = pytest.mark.parametrize("kind", [FixedPointwise, FixedDepthwise])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_layer(kind: type[Layer], weight_size: float = 0.3, bias_size: float = 0.2, seed: int = 0) -> Layer:
    layer = FixedPointwise(CHANNELS, CHANNELS) if kind is FixedPointwise else FixedDepthwise(CHANNELS)
    with torch.no_grad():
        layer.weight.normal_(std=weight_size, generator=seeded(seed))
        layer.bias.normal_(generator=seeded(seed + 1)).mul_(bias_size)
    return layer


def activations(seed: int = 2, num_pictures: int = 2) -> Tensor:
    """Random ones, one picture of extremes, and one of the largest alone."""
    shape = (CHANNELS, 7, 10)
    drawn = [quantize_activation(4 * torch.randn(shape, generator=seeded(seed + n))) for n in range(num_pictures)]
    signs = torch.randint(2, shape, generator=seeded(seed)).float() * 2 - 1
    return torch.stack([*drawn, signs * LARGEST_ACTIVATION, torch.full(shape, LARGEST_ACTIVATION)])


def as_integers(weight: Tensor, bias: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights and biases as int64, and the exponent of each output channel: w = W / 2^s, b = B / 2^(s + 6)."""
    w, b = weight.detach().double().numpy(), bias.detach().double().numpy()
    exponents = np.arange(-80, 27)
    scaled = np.concatenate([w, b[:, None] * 64], axis=1)[:, :, None] * 2.0**exponents
    s = exponents[(scaled == np.floor(scaled)).all(axis=1).argmax(axis=1)]
    return (w * 2.0 ** s[:, None]).astype(np.int64), (b * 64 * 2.0**s).astype(np.int64), s


def oracle(layer: Layer, x: Tensor) -> Tensor:
    """The layer in int64, brought back to float64; asserts that no sum of it leaves what float32 counts exactly."""
    weight, bias, s = as_integers(*exact_weights(layer.weight, layer.bias))
    whole = np.rint(x.double().numpy() / ACTIVATION_STEP).astype(np.int64)
    if isinstance(layer, FixedPointwise):
        total = np.einsum("oc,nchw->nohw", weight, whole)
    else:
        padded = np.pad(whole, ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        total = np.einsum("ck,nchwk->nchw", weight, windows.reshape(*whole.shape, 9))
    total = total + bias[:, None, None]
    assert np.abs(total).max() < 2**24
    return torch.from_numpy(total * 2.0 ** -(s[:, None, None] + 6.0))


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    # Not `torch.backends.mkldnn.flags`, which also sets what only Intel's GPUs have, and warns of it.
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)


# --- weights ----------------------------------------------------------------------------------------------------------


@weight_sizes
@bias_sizes
@layers
def test_no_sum_can_leave_what_float32_counts_exactly(kind: type[Layer], weight_size: float, bias_size: float):
    layer = random_layer(kind, weight_size, bias_size)
    weight, bias, _ = as_integers(*exact_weights(layer.weight, layer.bias))
    assert np.abs(weight).max() <= 127
    assert (2047 * np.abs(weight).sum(axis=1) + np.abs(bias)).max() < 2**24


@pytest.mark.parametrize("inputs", [1, 3, 100, 500, 2000])
def test_many_equal_weights_are_bounded_by_their_sum(inputs: int):
    """500 weights of 127 would sum to twice what there is room for."""
    weight, bias, _ = as_integers(*exact_weights(torch.full((2, inputs), 0.99), torch.tensor([0.0, -7.0])))
    assert (2047 * np.abs(weight).sum(axis=1) + np.abs(bias)).max() < 2**24
    assert weight.min() >= 1


@pytest.mark.parametrize("weight_size", [1e-3, 0.3, 5.0, 1e3, 1e6])
@pytest.mark.parametrize("inputs", [1, 9, 64, 600])
def test_weights_are_kept_as_finely_as_there_is_room_for(inputs: int, weight_size: float):
    weight = weight_size * torch.randn(32, inputs, generator=seeded())
    bias = torch.zeros(32)
    exact, _ = exact_weights(weight, bias)
    # Twice as fine, a weight or the sum would be too large; the unit is at most a 63rd of what bounds it.
    peak, total = weight.abs().amax(dim=1), weight.abs().sum(dim=1)
    unit = torch.maximum(peak / 63.5, 2 * total / (2**24 / 2047 - inputs / 2 - inputs / 32 - 8))
    assert ((exact - weight).abs().amax(dim=1) <= unit / 2).all()


def test_rounding_again_changes_nothing():
    weight, bias = 0.2 * torch.randn(16, 30, generator=seeded()), torch.randn(16, generator=seeded(1))
    once = exact_weights(weight, bias)
    twice = exact_weights(*once)
    assert torch.equal(once[0], twice[0])
    assert torch.equal(once[1], twice[1])


def test_the_order_in_which_weights_are_summed_does_not_matter():
    """A sum in float32 depends on its order, and so on a machine's vectors; where it lay next to a limit, the unit of a
    whole channel depended on its last digit."""
    rows = torch.rand(16, 300, generator=seeded()) + 0.5
    no_bias = torch.zeros(16)
    # The size at which each row's unit doubles, to the last digit.
    low, high = torch.ones(16, dtype=torch.float64), torch.full((16,), 2.0, dtype=torch.float64)
    unit_at_low = as_integers(*exact_weights(rows, no_bias))[2]
    for _ in range(26):
        middle = (low + high) / 2
        unit = as_integers(*exact_weights(rows * middle.float()[:, None], no_bias))[2]
        is_above = torch.from_numpy(unit < unit_at_low)
        low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
    for size in (low, high):
        weight = rows * size.float()[:, None]
        straight, _ = exact_weights(weight, no_bias)
        for seed in range(8):
            order = torch.randperm(300, generator=seeded(seed))
            assert torch.equal(exact_weights(weight[:, order], no_bias)[0], straight[:, order])


def test_weights_in_float64_are_the_same():
    weight, bias = torch.randn(64, 200, generator=seeded()), 10 * torch.randn(64, generator=seeded(1))
    for ours, double in zip(exact_weights(weight, bias), exact_weights(weight.double(), bias.double()), strict=True):
        assert torch.equal(ours.double(), double)


def test_a_channel_without_weights_gives_its_bias():
    layer = FixedPointwise(3, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.75, -3.0]))
    assert layer(torch.ones(1, 3, 1, 1)).flatten().tolist() == [0.75, -3.0]


# --- activations ------------------------------------------------------------------------------------------------------


def test_activations_are_whole_64ths_within_their_bounds_and_at_most_half_a_step_away():
    x = torch.linspace(-40, 40, 10_001)
    quantized = quantize_activation(x)
    assert torch.equal((quantized * 64).floor(), quantized * 64)
    assert quantized.abs().max() == LARGEST_ACTIVATION == 2047 / 64
    inside = x.abs() <= LARGEST_ACTIVATION
    assert (quantized - x)[inside].abs().max() <= ACTIVATION_STEP / 2
    assert torch.equal(quantize_activation(quantized), quantized)


def test_other_steps_round_to_their_multiples_without_a_bound():
    assert quantize_to(torch.tensor([-100.03, 0.03, 0.04, 7.1]), 1 / 16).tolist() == [-100.0, 0.0, 0.0625, 7.125]


# --- layers -----------------------------------------------------------------------------------------------------------


@weight_sizes
@bias_sizes
@layers
def test_outputs_are_those_of_64_bit_integers(kind: type[Layer], weight_size: float, bias_size: float):
    layer, x = random_layer(kind, weight_size, bias_size), activations()
    with torch.no_grad():
        assert torch.equal(layer(x).double(), oracle(layer, x))


@layers
def test_outputs_are_near_those_of_the_weights_as_they_are(kind: type[Layer]):
    layer, x = random_layer(kind), activations()
    with torch.no_grad():
        if kind is FixedPointwise:
            plain = F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
        else:
            plain = F.conv2d(x, layer.weight.view(-1, 1, 3, 3), layer.bias, padding=1, groups=CHANNELS)
        unit = layer.weight.abs().amax(dim=1) / 63  # rounding errors of all inputs at their largest, at worst
        worst = (layer.weight.shape[1] / 2 * LARGEST_ACTIVATION + 1) * unit
        assert ((layer(x) - plain).abs() <= worst[:, None, None]).all()
        assert (layer(x[:2]) - plain[:2]).std() < 0.02 * plain[:2].std()


@layers
def test_the_bits_are_the_same_in_any_layout_on_any_kernel_and_however_it_is_spread(kind: type[Layer]):
    layer, x = random_layer(kind, 1.0, 3.0), activations()
    with torch.no_grad():
        expected = layer(x)
        assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), expected)
        assert torch.equal(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
        with without_onednn():
            assert torch.equal(layer(x), expected)
        with threads(2):
            assert torch.equal(layer(x), expected)
        assert torch.equal(torch.cat([layer(one) for one in x.split(1)]), expected)
        assert torch.equal(layer.double()(x.double()), expected.double())


@layers
def test_the_bits_do_not_change_with_the_order_of_the_inputs(kind: type[Layer]):
    layer, x = random_layer(kind, 1.0, 3.0), activations()
    with torch.no_grad():
        expected = layer(x)
        if kind is FixedPointwise:
            order = torch.randperm(CHANNELS, generator=seeded(5))
            layer.weight.copy_(layer.weight[:, order])
            assert torch.equal(layer(x[:, order]), expected)
        else:
            layer.weight.copy_(layer.weight.flip(1))
            assert torch.equal(layer(x.flip(2, 3)), expected.flip(2, 3))


@layers
def test_gradients_are_those_of_the_same_layer_without_rounding(kind: type[Layer]):
    layer, x = random_layer(kind), activations().requires_grad_()
    weight, bias = exact_weights(layer.weight, layer.bias)
    leaves = [weight.detach().requires_grad_(), bias.detach().requires_grad_()]
    if kind is FixedPointwise:
        plain = F.conv2d(x, leaves[0][:, :, None, None], leaves[1])
    else:
        plain = F.conv2d(x, leaves[0].view(-1, 1, 3, 3), leaves[1], padding=1, groups=CHANNELS)
    pull = torch.randn(plain.shape, generator=seeded(9))
    theirs = torch.autograd.grad(plain, [x, *leaves], pull)
    ours = torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], pull)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-3)


def test_weights_move_under_training_and_learn_a_mixture():
    layer = random_layer(FixedPointwise)
    x = activations(num_pictures=4)[:4]
    mixture = torch.randn(CHANNELS, CHANNELS, generator=seeded(7)) / 5
    target = torch.einsum("oc,nchw->nohw", mixture, x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]
    torch.testing.assert_close(exact_weights(layer.weight, layer.bias)[0].detach(), mixture, atol=0.03, rtol=0)


def test_what_training_sees_is_what_decoding_computes():
    layer, x = nn.Sequential(random_layer(FixedPointwise), random_layer(FixedDepthwise)), activations()
    seen = layer(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), seen)
