"""The codec for all rates: a noisy mosaic in, a denoised and demosaiced picture out, 64 qualities of one network.

    v = root(x)                          noise made uniform (Anscombe 1948); the root's offset travels in the file
    y = g_a(v, noise, strength, quality) blocks at 1/8 of the photosites, latents at 1/16, in quantisation steps
    z = h_a(y)                           hyperprior at 1/64 (Balle et al. 2018)
    y_hat in two passes of a checkerboard in space and channel halves (He et al. 2021; Li et al. 2023, DCVC-DC), each
    with means and scales from z_hat, the second also from the first
    picture = root^-1(g_s(y_hat))        blocks at 1/8, shuffled to full resolution

Quality enters as gain vectors (Cui et al. 2021, "Asymmetric Gained Deep Image Compression") around the latents and
inside both transforms. From z_hat to the tables' indices and means all is fixed point (blocks/fixed_point.py), so that
a stream decodes to the same latents on every machine. The linear short cut from patches to latents and back follows
AuxT (Li et al. 2025): it learns the linear part of the transform within a few hundred steps.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from library.entropy.tables import FrequencyTables, gaussian_tables
from library.models.blocks.bounds import bounded, round_straight_through
from library.models.blocks.codec import (
    NUM_QUALITIES,
    CodecConfig,
    CodecModel,
    CodecOutput,
    Conditions,
    Passed,
    Reader,
    uniform_noise,
)
from library.models.blocks.fixed_point import FixedDepthwise, FixedPointwise, quantize_activation, quantize_to
from library.models.blocks.gaussian import CERTAIN, NUM_SCALES, gaussian_bits, scale_ladder, scale_of_index
from library.models.blocks.naf import naf_blocks
from library.models.blocks.pointwise import pointwise
from library.models.blocks.precision import full_precision
from library.ops.transfer import root_decode, root_encode

_MEAN_STEP = 1 / 16
"""Of a latent's mean, so that what context sees is exact."""
_INPUT_MEAN, _INPUT_GAIN, _OUTPUT_GAIN = 0.3, 4.0, 0.1
_LARGEST_SYMBOL = 2**20
_NUM_CONDITIONS = 4


_TIERS = {"tiny": (96, 128, 64, 6, 6), "small": (160, 192, 96, 8, 9), "base": (256, 256, 128, 10, 12)}
"""Width of the transforms, latent channels, hyper-latent channels, blocks of the encoder, of the decoder."""


class Config(CodecConfig):
    kind: Literal["rawcodec"] = "rawcodec"
    in_channels: Literal[3, 4] = 4
    """4: packed R, G1, G2, B. 3: a linear picture, for X-Trans and EXR."""
    tier: Literal["tiny", "small", "base"] = "small"
    """tiny: for quick looks; small: for processors; base: for GPUs."""
    width: int | None = Field(default=None, gt=0, multiple_of=2)
    """Channels at 1/8; left out, the tier's."""
    latents: int | None = Field(default=None, gt=0, multiple_of=2)
    """Channels at 1/16; left out, the tier's."""
    hyper_latents: int | None = Field(default=None, gt=0)
    """Channels at 1/64; left out, the tier's."""
    encoder_blocks: int | None = Field(default=None, ge=0)
    decoder_blocks: int | None = Field(default=None, ge=0)
    gain_knots: int = Field(default=8, ge=2)
    """Qualities at which gain vectors are learned; between them their logarithms are interpolated."""
    gain_range: tuple[float, float] = (1.0, 24.0)
    """Quantisation steps per unit of a latent at the lowest and the highest quality, before training."""

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Width, latents, hyper-latents, encoder blocks, decoder blocks."""
        given = (self.width, self.latents, self.hyper_latents, self.encoder_blocks, self.decoder_blocks)
        tier = _TIERS[self.tier]
        return tuple(own if own is not None else default for own, default in zip(given, tier, strict=True))  # pyright: ignore

    def thinnest(self) -> Config:
        return self.model_copy(update={"width": 4, "latents": 4, "hyper_latents": 2})

    def build(self) -> RawCodec:
        return RawCodec(self)


class RawCodec(CodecModel):
    """See the module, and `CodecModel`."""

    parts: ClassVar = {
        "encoder": ("stem", "encoder_first", "encoder_gain", "encoder_second", "down", "analysis_shortcut", "y_gain"),
        "entropy": ("hyper_analysis", "hyper_synthesis", "hyper_head", "context", "z_index"),
        "decoder": (
            "y_inverse_gain",
            "up",
            "decoder_first",
            "decoder_gain",
            "decoder_second",
            "head",
            "synthesis_shortcut",
        ),
    }
    streams: ClassVar = ("z", "y1", "y2")
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, latents, hyper, encoder_blocks, decoder_blocks = config.sizes
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2 if config.in_channels == 4 else 1
        self.patch = 8 // self.scale
        self.stride, self.lattice = 2 * self.patch, 8 * self.patch
        self.latent_channels, self.hyper_channels = latents, hyper
        self.num_qualities = NUM_QUALITIES
        knots, (low, high) = config.gain_knots, config.gain_range
        patch_channels = config.in_channels * self.patch**2

        self.stem = pointwise(patch_channels + _NUM_CONDITIONS, width)
        self.encoder_first = naf_blocks(width, encoder_blocks // 2)
        self.encoder_gain = _QualityGain(width, knots, 1.0, 1.0)
        self.encoder_second = naf_blocks(width, encoder_blocks - encoder_blocks // 2)
        self.down = nn.Conv2d(width, latents, 3, stride=2, padding=1)
        self.analysis_shortcut = nn.Conv2d(patch_channels, latents, 2, stride=2)
        self.y_gain = _QualityGain(latents, knots, low, high)

        self.hyper_analysis = nn.Sequential(
            pointwise(latents, hyper),
            nn.LeakyReLU(0.1),
            nn.Conv2d(hyper, hyper, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(hyper, hyper, 3, stride=2, padding=1),
        )
        self.z_index = _HyperScale(hyper)
        self.hyper_synthesis = _HyperSynthesis(hyper, 2 * hyper)
        self.hyper_head = _Predictor(2 * hyper, latents)
        self.context = _Context(2 * hyper, latents)

        self.y_inverse_gain = _QualityGain(latents, knots, 1 / low, 1 / high)
        self.up = pointwise(latents, 4 * width)
        self.decoder_first = naf_blocks(width, decoder_blocks // 2)
        self.decoder_gain = _QualityGain(width, knots, 1.0, 1.0)
        self.decoder_second = naf_blocks(width, decoder_blocks - decoder_blocks // 2)
        self.head = pointwise(width, 3 * 64)
        self.synthesis_shortcut = pointwise(latents, 4 * 3 * 64)
        nn.init.normal_(self.head.weight, std=0.01)

    # --- transforms: floating point ---------------------------------------------------------------------------------

    def analyze(self, x: Tensor, conditions: Conditions) -> Tensor:
        with full_precision(x):
            patches = F.pixel_unshuffle(root_encode(x.float(), _per_picture(conditions.offset)), self.patch)
            patches = (patches - _INPUT_MEAN) * _INPUT_GAIN
            told = _conditions_as_planes(conditions, patches)
        y = self.stem(torch.cat([patches, told], dim=1))
        y = self.encoder_first(y) * self.encoder_gain(conditions.quality)
        y = self.down(self.encoder_second(y)) + self.analysis_shortcut(patches)
        with full_precision(x):
            return y.float() * self.y_gain(conditions.quality)

    def synthesize(self, y_hat: Tensor, conditions: Conditions) -> Tensor:
        with full_precision(y_hat):
            y_hat = y_hat.float() * self.y_inverse_gain(conditions.quality)
        features = self.decoder_first(F.pixel_shuffle(self.up(y_hat), 2)) * self.decoder_gain(conditions.quality)
        patches = self.head(self.decoder_second(features)) + F.pixel_shuffle(self.synthesis_shortcut(y_hat), 2)
        with full_precision(y_hat):
            v = F.pixel_shuffle(patches.float() * _OUTPUT_GAIN, 8) + _INPUT_MEAN
            return root_decode(v, _per_picture(conditions.offset))

    # --- latents and whole numbers: exact ---------------------------------------------------------------------------

    def forward(self, x: Tensor, conditions: Conditions, seeds: Tensor | None) -> CodecOutput:
        y = self.analyze(x, conditions)
        with full_precision(x):
            y = y.contiguous()  # what is exact is the same in any layout, but not as fast
            z = self.hyper_analysis(_compressed(y))
            z_hat, z_indices = self._rounded_z(z), self.z_index(conditions.quality, z)
            coded = z_hat if seeds is None else z + uniform_noise(seeds, z.shape, z.device)
            bits = {"z": _sum(gaussian_bits(coded, scale_of_index(z_indices)))}
            noise = None if seeds is None else uniform_noise(seeds + 1, y.shape, y.device)
            features = self.hyper_synthesis(z_hat)
            y_hat = torch.zeros_like(y)
            for number, mask in enumerate(_checkerboard(y)):
                mean, index = self._predicted(number, features, y_hat)
                residual = y - mean
                rounded = round_straight_through(residual)
                coded = rounded if noise is None else residual + noise
                bits[self.streams[1 + number]] = _sum(gaussian_bits(coded, scale_of_index(index)) * mask)
                y_hat = torch.where(mask, rounded + mean, y_hat)
        return CodecOutput(self.synthesize(y_hat, conditions), bits)

    @torch.no_grad()
    def encode_latents(self, y: Tensor, conditions: Conditions) -> list[Passed]:
        with full_precision(y):
            y = y.float().contiguous()
            z = self._rounded_z(self.hyper_analysis(_compressed(y)))
            z_indices = self.z_index(conditions.quality, z).expand_as(z)
            passes = [_passed(torch.where(z_indices == CERTAIN, 0.0, z), z_indices)]
            z = torch.from_numpy(passes[0].values).view(z.shape).to(z)
            features = self.hyper_synthesis(z)
            y_hat = torch.zeros_like(y)
            for number, mask in enumerate(_checkerboard(y)):
                mean, index = self._predicted(number, features, y_hat)
                symbols = torch.floor(y - mean + 0.5).clamp(-_LARGEST_SYMBOL, _LARGEST_SYMBOL)
                symbols = torch.where(index == CERTAIN, 0.0, symbols)
                passes.append(_passed(_taken(symbols, mask), _taken(index, mask)))
                y_hat = torch.where(mask, symbols + mean, y_hat)
        return passes

    @torch.no_grad()
    def decode_latents(self, num_tiles: int, height: int, width: int, conditions: Conditions, read: Reader) -> Tensor:
        device = self.device
        y_hat = torch.zeros(num_tiles, self.latent_channels, height, width, device=device)
        z = torch.zeros(num_tiles, self.hyper_channels, height // 4, width // 4, device=device)
        with full_precision(y_hat):
            z_indices = self.z_index(conditions.quality, z).expand_as(z)
            z = torch.from_numpy(read(_numbers(z_indices))).to(z).view(z.shape)
            features = self.hyper_synthesis(z)
            for number, mask in enumerate(_checkerboard(y_hat)):
                mean, index = self._predicted(number, features, y_hat)
                symbols = torch.from_numpy(read(_numbers(_taken(index, mask)))).to(y_hat)
                y_hat = torch.where(mask, _put_back(symbols, mask, y_hat) + mean, y_hat)
        return y_hat

    def frequency_tables(self) -> FrequencyTables:
        scales = np.array(scale_ladder())
        scales[CERTAIN] = 0
        return gaussian_tables(scales)

    def _predicted(self, number: int, features: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Means and table indices of all latents, before the pass of that number."""
        return self.hyper_head(features) if number == 0 else self.context(features, y_hat)

    def _rounded_z(self, z: Tensor) -> Tensor:
        return bounded(round_straight_through(z), -31, 31)


class _QualityGain(nn.Module):
    """(N,) qualities -> (N, channels, 1, 1) factors: learned at a few knots, geometric between them."""

    def __init__(self, channels: int, knots: int, low: float, high: float) -> None:
        super().__init__()
        start = torch.linspace(math.log(low), math.log(high), knots)
        self.log_gain = nn.Parameter(start[:, None].repeat(1, channels))

    def forward(self, quality: Tensor) -> Tensor:
        knots = len(self.log_gain)
        position = quality.clamp(0, NUM_QUALITIES - 1) * ((knots - 1) / (NUM_QUALITIES - 1))
        below = position.floor().long().clamp(0, knots - 2)
        share = (position - below)[:, None]
        log_gain = torch.lerp(self.log_gain[below], self.log_gain[below + 1], share)
        return torch.exp(log_gain)[:, :, None, None]


class _HyperScale(nn.Module):
    """Table indices of the hyper-latents: a parabola of the quality for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        coefficients = torch.zeros(3, channels)
        coefficients[0] = 25.0
        self.coefficients = nn.Parameter(coefficients)

    def forward(self, quality: Tensor, z: Tensor) -> Tensor:
        """(N, channels, 1, 1) whole, as float32."""
        # Fixed point as well: coefficients and t in steps of powers of two make every product exact.
        t = torch.floor(quality.clamp(0, NUM_QUALITIES - 1) + 0.5) / NUM_QUALITIES
        constant, slope, curve = quantize_to(bounded(self.coefficients, -64, 64), 2.0**-4)
        index = constant + t[:, None] * slope + (t * t)[:, None] * curve
        return bounded(round_straight_through(index), CERTAIN + 1, NUM_SCALES - 1)[:, :, None, None].to(z.device)


class _HyperSynthesis(nn.Module):
    """(T, hyper, h / 4, w / 4) whole numbers -> (T, features, h, w) activations, in fixed point."""

    def __init__(self, hyper: int, features: int) -> None:
        super().__init__()
        self.first, self.first_spatial = FixedPointwise(hyper, 4 * hyper), FixedDepthwise(hyper)
        self.second, self.second_spatial = FixedPointwise(hyper, 4 * features), FixedDepthwise(features)

    def forward(self, z_hat: Tensor) -> Tensor:
        x = quantize_activation(z_hat)
        for pointwise_layer, spatial in ((self.first, self.first_spatial), (self.second, self.second_spatial)):
            x = F.pixel_shuffle(torch.relu(quantize_activation(pointwise_layer(x))), 2)
            x = torch.relu(quantize_activation(spatial(x)))
        return x


class _Predictor(nn.Module):
    """Activations -> means in sixteenths, and whole table indices, of all latents."""

    def __init__(self, features: int, latents: int) -> None:
        super().__init__()
        self.layer = FixedPointwise(features, 2 * latents)
        with torch.no_grad():
            self.layer.weight.mul_(0.1)
            self.layer.bias[latents:] = 25 / _INDEX_GAIN

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, index = self.layer(x).chunk(2, dim=1)
        index = bounded(round_straight_through(index * _INDEX_GAIN), CERTAIN, NUM_SCALES - 1)
        return quantize_to(mean, _MEAN_STEP), index


_INDEX_GAIN = 8.0
"""Table indices per unit of a predictor's output: a power of two."""


class _Context(nn.Module):
    """Features and the latents of the first pass -> means and indices of the second."""

    def __init__(self, features: int, latents: int) -> None:
        super().__init__()
        self.spatial = FixedDepthwise(latents)
        self.mix = FixedPointwise(features + latents, latents)
        self.predict = _Predictor(latents, latents)

    def forward(self, features: Tensor, y_hat: Tensor) -> tuple[Tensor, Tensor]:
        around = quantize_activation(self.spatial(quantize_activation(y_hat)))
        return self.predict(torch.relu(quantize_activation(self.mix(torch.cat([features, around], dim=1)))))


def _per_picture(value: Tensor) -> Tensor:
    return value[:, None, None, None]


def _conditions_as_planes(conditions: Conditions, like: Tensor) -> Tensor:
    """(N, 4, h, w): noise and offset on logarithmic scales, strength, quality; all about the size of 1."""
    values = [
        torch.log10(conditions.a.clamp(1e-6, 1)) / 2 + 1.5,
        torch.log10(conditions.offset) + 2,
        conditions.strength,
        conditions.quality / (NUM_QUALITIES - 1),
    ]
    planes = torch.stack(values, dim=1)[:, :, None, None]
    return planes.expand(-1, -1, *like.shape[2:])


def _compressed(y: Tensor) -> Tensor:
    """Latents of any quality at about the same size."""
    return torch.sign(y) * torch.log1p(y.abs())


def _checkerboard(y: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (1, C, h, w) of the two passes: even places of the first half of the channels with odd ones of the second,
    and the rest."""
    channels, height, width = y.shape[1:]
    rows, columns = torch.arange(height, device=y.device), torch.arange(width, device=y.device)
    odd = (rows[:, None] + columns) % 2 == 1
    second_half = torch.arange(channels, device=y.device) >= channels // 2
    first = (odd == second_half[:, None, None])[None]
    return first, ~first


def _taken(values: Tensor, mask: Tensor) -> Tensor:
    """(T, C, h, w) -> (T, n) where the mask holds, in order of memory."""
    return values.flatten(1)[:, mask.flatten()]


def _put_back(values: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    whole = torch.zeros_like(like).flatten(1)
    whole[:, mask.flatten()] = values
    return whole.view(like.shape)


def _numbers(values: Tensor) -> np.ndarray:
    return values.flatten(1).to(torch.int32).cpu().numpy()


def _passed(values: Tensor, indices: Tensor) -> Passed:
    bits = _sum(gaussian_bits(values, scale_of_index(indices)) * (indices != CERTAIN))
    return Passed(_numbers(values), _numbers(indices), bits.double().cpu().numpy())


def _sum(bits: Tensor) -> Tensor:
    """(N, ...) -> (N,)."""
    return bits.flatten(1).sum(dim=1)
