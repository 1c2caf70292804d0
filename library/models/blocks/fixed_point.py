"""Layers whose results are the same bits on every machine: small integers over a power of two, carried in float32.

An activation is a whole number of 1/64 between -32 and 32 (12 bits and a sign), a weight a whole number of 2^-s between
-127 and 127 of them, s chosen for each output channel. A sum of such products is exact in float32, in whatever order it
is taken, as long as it stays below 2^24 of its unit; s is chosen so that it must. So matrix products may be blocked,
threaded or compiled in any way, on any device that has float32. What they must not be is approximated: there are no
convolution kernels here, since some of those transform (Winograd, FFT), and autocast and TF32 are off.

Training sees the same rounded values, with the gradient of the values before (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"). Integer networks as what makes a stream
decodable elsewhere: Balle et al. 2019, "Integer Networks for Data Compression with Latent-Variable Models".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from library.models.blocks.bounds import bounded, round_straight_through

ACTIVATION_STEP = 2.0**-6
"""Unit of the activations."""
LARGEST_ACTIVATION = 2047 * ACTIVATION_STEP
_LARGEST_WEIGHT = 127
_EXACT = 2**24
"""Whole numbers of float32 are exact up to here."""


def quantize_activation(x: Tensor) -> Tensor:
    """To the nearest multiple of `ACTIVATION_STEP` within `LARGEST_ACTIVATION`; float32, any shape."""
    return bounded(round_straight_through(x / ACTIVATION_STEP), -2047, 2047) * ACTIVATION_STEP


def quantize_to(x: Tensor, step: float) -> Tensor:
    """To the nearest multiple of `step`, a power of two; float32."""
    return round_straight_through(x / step) * step


class FixedPointwise(nn.Module):
    """A 1x1 convolution of quantised activations: (N, in, h, w) -> (N, out, h, w), exact sums, not yet rounded."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=math.sqrt(2 / in_channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = exact_weights(self.weight, self.bias)
        return (torch.matmul(weight, x.flatten(2)) + bias[:, None]).unflatten(2, x.shape[2:])


class FixedDepthwise(nn.Module):
    """A 3x3 convolution of each channel by itself, zeros around: (N, C, h, w) to the same, exact sums."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 9))
        self.bias = nn.Parameter(torch.zeros(channels))
        with torch.no_grad():
            self.weight.normal_(std=0.1)
            self.weight[:, 4] += 1.0  # close to passing its input on

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = exact_weights(self.weight, self.bias)
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        total = bias[:, None, None].expand_as(x)
        for tap in range(9):
            top, left = divmod(tap, 3)
            shifted = padded[:, :, top : top + height, left : left + width]
            total = total + weight[:, tap, None, None] * shifted
        return total


def exact_weights(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (out, n) and biases (out,) rounded so that every sum over activations is exact: see the module.

    The exponents come from the weights' binary representation and from sums of whole numbers; no logarithm, power or
    sum is rounded, so that they too are the same everywhere.
    """
    with torch.no_grad():
        # Largest s with max |w| 2^s <= 127 and 2047 sum |w| 2^s + |b| 2^(s + 6) < 2^24. Rounding adds up to n halves to
        # the sum, and 32 in place of the largest activation takes up to 5 from what a bias needs.
        n = weight.shape[1]
        exponent = _exponent_below(_LARGEST_WEIGHT, weight.abs().amax(dim=1)).clamp(-64, 20)
        scale = _power_of_two(exponent)
        total = (weight.abs() * (64 * scale[:, None])).ceil().long().sum(dim=1).float() / 64  # whole: in any order
        total = total + bias.abs().float() * (scale / 32)
        room = (_EXACT - 2 * 64) / 2047 - n / 2 - n / 64 - 6
        exponent = exponent + _exponent_below(room, total).clamp_max(0)
        unit = _power_of_two(-exponent).to(weight.dtype)
        weight_error = torch.floor(weight / unit[:, None] + 0.5) * unit[:, None] - weight
        bias_unit = unit * ACTIVATION_STEP
        bias_error = torch.floor(bias / bias_unit + 0.5) * bias_unit - bias
    return weight + weight_error, bias + bias_error


def _exponent_below(limit: float, value: Tensor) -> Tensor:
    """The largest whole s with value * 2^s <= limit; value >= 0. int32."""
    mantissa, exponent = torch.frexp(value.clamp_min(2.0**-40))
    limit_mantissa, limit_exponent = math.frexp(limit)
    return limit_exponent - exponent - (mantissa > limit_mantissa).to(exponent.dtype)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent from its bits, since `torch.ldexp` takes a power, which need not be exact; -126 ... 127."""
    return ((exponent + 127) << 23).view(torch.float32)
