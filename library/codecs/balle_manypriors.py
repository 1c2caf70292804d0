"""The codec of RawNIND, for comparison (Brummer, De Vleeschouwer 2025): one network a rate, 64 priors that compete.

    y = g_a(x)         5x5 convolutions of stride 2 with GDN between (Balle et al. 2017, "End-to-end Optimized Image
                       Compression")
    each position of round(y) takes the prior that codes it in the fewest bits; its index is coded first
    picture = g_s(round(y))

Other than in the research code, indices and latents have frequency tables and go through a real stream, the indices
are counted at every position, evaluation is in evaluation mode, all that is learned or counted is in the weights, and
the picture is never clamped. Its recipe: Adam without weight decay, a learning rate of 1e-4, ten times that for the
entropy model.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from library.entropy.rans import CorruptStreamError
from library.entropy.tables import FrequencyTables, tables_from_probabilities
from library.models.blocks.bounds import round_straight_through
from library.models.blocks.codec import CodecConfig, CodecModel, CodecOutput, Conditions, Passed, Reader, uniform_noise
from library.models.blocks.competing_priors import CompetingPriors
from library.models.blocks.gdn import GDN, InverseGDN
from library.models.blocks.pointwise import pointwise
from library.models.blocks.precision import full_precision

Head = Literal["balle", "pixelshuffle", "transposed"]
_LARGEST_SYMBOL = 2**20
_NETWORK_STRIDE = 16


class Config(CodecConfig):
    kind: Literal["balle_manypriors"] = "balle_manypriors"
    in_channels: Literal[3, 4] = 4
    """4: packed R, G1, G2, B; 3: lin_rec2020."""
    hidden: int = Field(default=192, gt=0)
    """Channels between the layers."""
    latents: int = Field(default=320, gt=0)
    """Channels that are coded."""
    num_priors: int = Field(default=64, gt=0)
    """Priors that compete for each position."""
    head: Head = "pixelshuffle"
    """How the decoder ends. At the size the encoder began with: `balle`, a transposed convolution to 3 channels. At
    twice that size: `pixelshuffle` to 12 channels that are shuffled, `transposed` by another transposed convolution."""
    preupsample: bool = False
    """Enlarge packed input bilinearly before the first layer: four times the work of the encoder, four times the
    latents."""
    revive_unused_for: int = Field(default=50, ge=0)
    """Steps of training without being taken anywhere after which a prior is dead."""
    revive_share: float = Field(default=0.1, ge=0, le=1)
    """Most of a picture's positions that dead priors are trained on. 0 leaves them dead."""

    @model_validator(mode="after")
    def _head_fits_input(self) -> Config:
        if self.preupsample and self.in_channels == 3:
            raise ValueError("preupsample is for packed input: set it to false, or in_channels to 4")
        full_size = self.in_channels == 3 or self.preupsample
        if full_size != (self.head == "balle"):
            raise ValueError(
                f"head '{self.head}' does not fit in_channels {self.in_channels} "
                f"{'with' if self.preupsample else 'without'} preupsample: set head to 'balle' for 3 channels or with "
                "preupsample, to 'pixelshuffle' or 'transposed' for 4 without"
            )
        return self

    def thinnest(self) -> Config:
        return self.model_copy(update={"hidden": 1, "latents": 1, "num_priors": 1})

    def build(self) -> BalleManyPriors:
        return BalleManyPriors(self)


class BalleManyPriors(CodecModel):
    """See the module, and `CodecModel`. It takes nothing from the conditions."""

    parts: ClassVar = {"encoder": ("g_a",), "entropy": ("priors",), "decoder": ("g_s",)}
    lr_multipliers: ClassVar = {"entropy": 10.0}
    streams: ClassVar = ("prior", "y")
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden, latents = config.hidden, config.latents
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2 if config.in_channels == 4 else 1
        self.stride = self.lattice = _NETWORK_STRIDE // 2 if config.preupsample else _NETWORK_STRIDE
        self.latent_channels = latents
        self.num_qualities = 1
        enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.g_a = nn.Sequential(
            *([enlarge] if config.preupsample else []),
            _down(config.in_channels, hidden),
            GDN(hidden),
            _down(hidden, hidden),
            GDN(hidden),
            _down(hidden, hidden),
            GDN(hidden),
            _down(hidden, latents),
        )
        self.priors = CompetingPriors(
            config.num_priors,
            latents,
            revive_unused_for=config.revive_unused_for,
            revive_share=config.revive_share,
        )
        self.g_s = nn.Sequential(
            _up(latents, hidden),
            InverseGDN(hidden),
            _up(hidden, hidden),
            InverseGDN(hidden),
            _up(hidden, hidden),
            InverseGDN(hidden),
            *_head(config.head, hidden),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                # The research code's Xavier gains come to this, in transposed convolutions too.
                std = math.sqrt(2 / (layer.in_channels * math.prod(layer.kernel_size)))
                nn.init.normal_(layer.weight, std=std)
                assert layer.bias is not None
                nn.init.constant_(layer.bias, 0.01)

    # --- transforms: floating point ---------------------------------------------------------------------------------

    def analyze(self, x: Tensor, conditions: Conditions) -> Tensor:
        return self.g_a(x).float()

    def synthesize(self, y_hat: Tensor, conditions: Conditions) -> Tensor:
        return self.g_s(y_hat).float()

    # --- latents and whole numbers ------------------------------------------------------------------------------------

    def forward(self, x: Tensor, conditions: Conditions, seeds: Tensor | None) -> CodecOutput:
        y = self.analyze(x, conditions)
        with full_precision(x):
            y_hat = round_straight_through(y)
            if seeds is None:
                _, prior, values = self.priors(y_hat, None)
            else:
                _, prior, values = self.priors(y + uniform_noise(seeds, y.shape, y.device), seeds + 1)
        bits = {"prior": prior.flatten(1).sum(dim=1), "y": values.flatten(1).sum(dim=1)}
        return CodecOutput(self.synthesize(y_hat, conditions), bits)

    @torch.no_grad()
    def encode_latents(self, y: Tensor, conditions: Conditions) -> list[Passed]:
        # Which prior a position takes is found in floating point, and then written down: the decoder only reads it.
        with full_precision(y):
            y_hat = torch.floor(y.float() + 0.5).clamp(-_LARGEST_SYMBOL, _LARGEST_SYMBOL)
            choice, prior, values = self.priors.as_coded(y_hat)
        choice = _numbers(choice)
        return [
            Passed(choice, np.full_like(choice, self._index_table), _bits_of_tiles(prior)),
            Passed(_numbers(y_hat), self._tables_of(choice), _bits_of_tiles(values)),
        ]

    @torch.no_grad()
    def decode_latents(self, num_tiles: int, height: int, width: int, conditions: Conditions, read: Reader) -> Tensor:
        choice = read(np.full((num_tiles, height * width), self._index_table, np.int32))
        unknown = ((choice < 0) | (choice >= self.config.num_priors)).any(axis=1)
        if unknown.any():
            raise CorruptStreamError(int(unknown.argmax()), f"names a prior beyond the {self.config.num_priors}")
        values = torch.from_numpy(read(self._tables_of(choice)))
        return values.to(self.device, torch.float32).view(num_tiles, self.latent_channels, height, width)

    def frequency_tables(self) -> FrequencyTables:
        return tables_from_probabilities(*self.priors.distributions())

    @property
    def _index_table(self) -> int:
        """The table of the priors' indices, which comes after those of the latents."""
        return self.config.num_priors * self.latent_channels

    def _tables_of(self, choice: np.ndarray) -> np.ndarray:
        """(T, h * w) priors -> (T, latent_channels * h * w) tables, in the order of the latents."""
        channels = np.arange(self.latent_channels, dtype=np.int32)[:, None]
        return (choice[:, None].astype(np.int32) * self.latent_channels + channels).reshape(len(choice), -1)


def _down(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 5, stride=2, padding=2)


def _up(in_channels: int, out_channels: int) -> nn.Module:
    return nn.ConvTranspose2d(in_channels, out_channels, 5, stride=2, padding=2, output_padding=1)


def _head(head: Head, hidden: int) -> list[nn.Module]:
    if head == "balle":
        return [_up(hidden, 3)]
    if head == "pixelshuffle":
        return [_up(hidden, hidden), pointwise(hidden, 12), nn.PixelShuffle(2)]
    return [_up(hidden, hidden), nn.LeakyReLU(0.01), _up(hidden, 3)]


def _numbers(values: Tensor) -> np.ndarray:
    """(T, ...) -> (T, n) int32, in the order of channels, rows and columns."""
    return values.flatten(1).to(torch.int32).cpu().numpy()


def _bits_of_tiles(bits: Tensor) -> np.ndarray:
    return bits.flatten(1).sum(dim=1).double().cpu().numpy()
