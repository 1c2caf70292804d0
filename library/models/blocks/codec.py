"""The contract of every learned codec: picture -> latents -> whole numbers with their tables -> latents -> picture.

Between picture and latents run networks in floating point, tile by tile with a halo. Between latents and whole numbers
runs only arithmetic that is the same on every machine, for each tile of the file by itself, so that any tile can be
decoded alone and to the same latents everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from library.config import Component
from library.entropy.tables import FrequencyTables
from library.models.blocks.reach import asking, probe_reach
from library.models.blocks.trainable import Trainable

NUM_QUALITIES = 64
"""Of a codec of many rates: 0 gives the smallest file, 63 the largest."""


class CodecConfig(Component):
    """Settings of a codec; `build` makes it, with fresh weights."""

    in_channels: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the codec's parameter groups, from input to output."""
        with asking():
            return tuple(group.name for group in self.thinnest().build().parameter_groups())

    @functools.cached_property
    def lattice(self) -> int:
        """Input pixels that a coded picture's sides, and the origins of its tiles, must be multiples of."""
        with asking():
            return self.thinnest().build().lattice

    @functools.cached_property
    def num_qualities(self) -> int:
        """Rates that one set of weights gives: 64, or 1."""
        with asking():
            return self.thinnest().build().num_qualities

    def thinnest(self) -> CodecConfig:
        """The same codec with as few channels as its layers allow: it looks as far, and is quicker to ask."""
        return self

    def build(self) -> CodecModel:
        raise NotImplementedError(f"{type(self).__name__} must build its codec")


class Conditions(NamedTuple):
    """What a picture is coded under, one value for each picture: float32 (N,)."""

    quality: Tensor
    """0 (smallest file) ... 63, fractions legal; a codec of one rate ignores it."""
    strength: Tensor
    """0 keeps the noise as it is, 1 removes it; a codec that always denoises ignores it."""
    a: Tensor
    """Photon noise of the input: variance per unit of signal, scene-linear. Only the encoder asks."""
    offset: Tensor
    """Where the root that stabilises the noise bends; see `stabilizer_offset`."""


def stabilizer_offset(a: Tensor, b: Tensor) -> Tensor:
    """Offset of the root (`library.ops.transfer.root_encode`) after which noise of variance a * x + b is about uniform:
    b / a, not below what one photon is worth nor beyond [0.001, 0.1]. float32, any shape."""
    return (b / a.clamp_min(1e-8) + a).clamp(1e-3, 0.1)


class Passed(NamedTuple):
    """What is coded in one go: whole numbers, and the table of each."""

    values: np.ndarray
    """(T, n) int32, for each of T tiles."""
    indices: np.ndarray
    """(T, n) int32 rows of the frequency tables."""
    bits: np.ndarray
    """(T,) float64: what the model's own probabilities say that they cost."""


@dataclass
class CodecOutput:
    """What training sees."""

    picture: Tensor
    """(N, 3, scale * h, scale * w): camera RGB of a mosaic, lin_rec2020 of a picture. Not clamped."""
    bits: dict[str, Tensor]
    """Bits of each picture (N,), by stream: their sum is the rate."""


Reader = Callable[[np.ndarray], np.ndarray]
"""(T, n) table indices of the next pass -> (T, n) values."""


class CodecModel(Trainable):
    """Base of the codecs.

    in_channels 4  packed R, G1, G2, B, (raw - black) / (white - black), unclipped, no white balance -> camera RGB
    in_channels 3  lin_rec2020 -> lin_rec2020
    """

    config: CodecConfig
    in_channels: int
    scale: int
    """Output pixels per input pixel along each axis: 2 for a mosaic, 1 for a picture."""
    stride: int
    """Input pixels per latent along each axis."""
    lattice: int
    """Input pixels that a coded picture's sides, and the origins of its tiles, must be multiples of."""
    latent_channels: int
    num_qualities: int
    streams: ClassVar[tuple[str, ...]]
    """Names of the passes of a tile, in the order they are coded."""

    def forward(self, x: Tensor, conditions: Conditions, seeds: Tensor | None) -> CodecOutput:
        """Picture and rate, with gradients.

        x      (N, in_channels, h, w), sides multiples of the lattice
        seeds  (N,) int64 of the uniform noise that stands for rounding in the rate; None: it is rounded, as in a file
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it computes")

    def analyze(self, x: Tensor, conditions: Conditions) -> Tensor:
        """(N, in_channels, h, w) -> latents (N, latent_channels, h / stride, w / stride), not yet rounded."""
        raise NotImplementedError

    def synthesize(self, y_hat: Tensor, conditions: Conditions) -> Tensor:
        """Rounded latents -> (N, 3, scale * h, scale * w)."""
        raise NotImplementedError

    def frequency_tables(self) -> FrequencyTables:
        """Tables of all streams, from the weights. Called once, when a bundle is written."""
        raise NotImplementedError

    def encode_latents(self, y: Tensor, conditions: Conditions) -> list[Passed]:
        """What to code for latents (T, latent_channels, h, w), each of the T a tile of its own; one entry a stream."""
        raise NotImplementedError

    def decode_latents(self, num_tiles: int, height: int, width: int, conditions: Conditions, read: Reader) -> Tensor:
        """Rounded latents (T, latent_channels, height, width) of T tiles; `read` is called once a stream, in order.

        Bit for bit what the encoder's values stand for, on every machine.
        """
        raise NotImplementedError

    @functools.cached_property
    def analysis_reach(self) -> int:
        """Input pixels beside a latent's own that can change it."""
        return self._probed_reach(self.in_channels, self.stride, 1, lambda model, x, told: model.analyze(x, told))

    @functools.cached_property
    def synthesis_reach(self) -> int:
        """Latents beside the one that a pixel lies in that can change it."""
        return self._probed_reach(None, 1, self.stride * self.scale, lambda model, y, told: model.synthesize(y, told))

    def _probed_reach(
        self,
        channels: int | None,
        period: int,
        outputs_per_period: int,
        run: Callable[[CodecModel, Tensor, Conditions], Tensor],
    ) -> int:
        """Found by asking the thinnest such codec, which looks as far. None: as many channels as it has latents."""
        with asking():
            model = self.config.thinnest().build().eval()
            return probe_reach(
                lambda x: run(model, x, _some_conditions(len(x))),
                channels or model.latent_channels,
                period,
                outputs_per_period,
            )

    @functools.cached_property
    def macs_per_pixel(self) -> Mapping[str, float]:
        """Multiply-accumulates per pixel of the full-resolution picture, by part: what encoding and decoding take."""
        side = 8 * self.lattice
        pixels = (self.scale * side) ** 2
        counts = {}
        with torch.device("meta"):
            model = self.config.build().eval()
            x, conditions = torch.zeros(1, self.in_channels, side, side), _some_conditions(1)
            for name, call in (
                ("encoder", lambda: model.analyze(x, conditions)),
                ("decoder", lambda: model.synthesize(model.analyze(x, conditions), conditions)),
                ("all", lambda: model(x, conditions, None)),
            ):
                with FlopCounterMode(display=False) as counter:
                    call()
                counts[name] = counter.get_total_flops() / 2 / pixels
        decoder = counts["decoder"] - counts["encoder"]
        return {
            "encoder": counts["encoder"],
            "decoder": decoder,
            "entropy": counts["all"] - counts["encoder"] - decoder,
        }


def uniform_noise(seeds: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """(N, ...) in [-1/2, 1/2), each picture's a function of its own seed, whichever worker draws it."""
    draws = []
    for seed in seeds.tolist():
        generator = torch.Generator(device=device).manual_seed(seed)
        draws.append(torch.rand(shape[1:], generator=generator, device=device) - 0.5)
    return torch.stack(draws)


def _some_conditions(num_pictures: int) -> Conditions:
    values = torch.ones(num_pictures)
    return Conditions(quality=32 * values, strength=values, a=1e-3 * values, offset=0.01 * values)
