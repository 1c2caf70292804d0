"""What a codec is trained for: rate + lmbda * distortion of each picture, at a quality and a strength drawn for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor

from library.config import Frozen
from library.datasets.batch import Batch
from library.datasets.order import coding_random
from library.metrics import masked_mean_per_image, only_valid
from library.models.blocks.codec import NUM_QUALITIES, CodecOutput, Conditions, stabilizer_offset
from library.ops.cfa import sample_cfa, unpack_cfa
from library.ops.transfer import root_encode
from library.training.objective import Objective


@dataclass(frozen=True)
class CodecBatch(Batch):
    """A batch with what each of its pictures is to be coded under."""

    quality: Tensor
    """(N,) 0 ... 63, whole, as float32."""
    strength: Tensor
    """(N,) 0 ... 1: the share of the noise that is to go."""
    rate_weight: Tensor
    """(N,) factor of the rate, below 1 while it is warmed up."""
    seeds: Tensor
    """(N,) int64, of the noise that stands for rounding."""

    @property
    def conditions(self) -> Conditions:
        a, b = self.noise.T
        return Conditions(self.quality, self.strength, a, stabilizer_offset(a, b))


class RateConfig(Frozen):
    """What a bit is worth against distortion, and how qualities are drawn in training."""

    lmbda: float | tuple[float, float] = (30.0, 20000.0)
    """Of rate in bits per photosite + lmbda * distortion. Two for a codec of many qualities, at 0 and at 63, spaced
    evenly in the logarithm between them; one for a codec that has but one rate."""
    balance: float = Field(default=0.5, ge=0, le=1)
    """A picture's loss is divided by lmbda ** balance, or the highest rates would drown the others' gradients."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate's weight rises from 0: without it latents collapse before they have learned to carry
    anything."""
    denoised_share: float = Field(default=1.0, ge=0, le=1)
    """Of the pictures that are coded for the clean truth. The others' strength is uniform in [0, 1); 0 is faithful to
    the noisy raw."""

    @model_validator(mode="after")
    def _lmbda_is_above_zero(self) -> RateConfig:
        low, high = self.range
        if not 0 < low <= high:
            raise ValueError(f"lmbda is {self.lmbda}: give one number above 0, or [lowest, highest]")
        return self

    @property
    def range(self) -> tuple[float, float]:
        return self.lmbda if isinstance(self.lmbda, tuple) else (self.lmbda, self.lmbda)

    def lmbda_of(self, quality: Tensor) -> Tensor:
        low, high = self.range
        return low * (high / low) ** (quality / (NUM_QUALITIES - 1))

    def weight_of(self, quality: Tensor) -> Tensor:
        """Of a picture's loss among those of other qualities; 1 in the middle."""
        middle = math.sqrt(self.range[0] * self.range[1])
        return (middle / self.lmbda_of(quality)) ** self.balance

    def draw(self, batch: Batch, *, seed: int, step: int, slots: Sequence[int]) -> CodecBatch:
        """Qualities, strengths and seeds of some slots of a step: a pure function, like the batch itself."""
        draws = []
        for slot in slots:
            random = coding_random(seed, step, slot)
            quality, is_denoised, strength = random.integers(NUM_QUALITIES), random.random(), random.random()
            draws.append((quality, 1.0 if is_denoised < self.denoised_share else strength, random.integers(2**62)))
        qualities, strengths, seeds = zip(*draws, strict=True)
        rate_weight = min(1.0, (step + 1) / (self.warmup_steps + 1))
        return CodecBatch(
            **{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)},
            quality=torch.tensor(qualities, dtype=torch.float32),
            strength=torch.tensor(strengths, dtype=torch.float32),
            rate_weight=torch.full((len(draws),), rate_weight),
            seeds=torch.tensor(seeds, dtype=torch.int64),
        )


class RateDistortion:
    """Rate, distortion, and their weighted sum.

    objective  how a picture differs from the clean truth
    """

    def __init__(self, objective: Objective, rate: RateConfig) -> None:
        self.objective, self.rate = objective, rate

    def __call__(self, output: CodecOutput, batch: CodecBatch) -> dict[str, Tensor]:
        """`loss`, `bpp` and its streams, `distortion` and its losses, `lmbda`: means over the pictures, float32."""
        photosites = batch.mask[0].numel()
        with torch.autocast(output.picture.device.type, enabled=False):
            streams = {name: bits / photosites for name, bits in output.bits.items()}
            bpp = torch.stack(list(streams.values())).sum(dim=0)
            distortion, parts = self.distortion(output.picture.float(), batch)
            lmbda = self.rate.lmbda_of(batch.quality)
            loss = self.rate.weight_of(batch.quality) * (batch.rate_weight * bpp + lmbda * distortion)
        return {
            "loss": loss.mean(),
            "bpp": bpp.mean(),
            **{f"bpp.{name}": rate.mean() for name, rate in streams.items()},
            "distortion": distortion.mean(),
            **{name: part.mean() for name, part in parts.items()},
            "lmbda": lmbda.mean(),
        }

    def distortion(self, picture: Tensor, batch: CodecBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(N,) of each picture, and the losses it is made of.

        Against the truth by `strength`, and by what is left of 1 against the noisy mosaic at its own photosites. For
        squared errors that is the distance to a mix of both, in which strength is the share of the noise that is gone.
        """
        each = [self.objective(picture[n : n + 1], _picture(batch, n)) for n in range(len(picture))]
        parts = {name: torch.stack([losses[name] for losses in each]) for name in each[0]}
        denoised = parts.pop("loss")
        if self.rate.denoised_share == 1:  # not by the batch: all workers must name the same losses
            return denoised, parts
        # What does not count is hidden before the curve, as in `Objective.compared`.
        measured = (_as_measured(picture, batch), _measured(batch))
        output, noisy = (root_encode(only_valid(x, batch.mask)) for x in measured)
        faithful = masked_mean_per_image((output - noisy) ** 2, batch.mask)
        weight = sum(self.objective.weights.values())
        return batch.strength * denoised + (1 - batch.strength) * weight * faithful, {**parts, "faithful": faithful}


def _picture(batch: CodecBatch, index: int) -> Batch:
    """One picture as a batch of its own."""
    own = {f.name: getattr(batch, f.name)[index : index + 1] for f in dataclasses.fields(Batch)}
    return Batch(**own)


def _as_measured(picture: Tensor, batch: Batch) -> Tensor:
    """(N, C, H, W): what the sensor would record of a picture. One that measures all colours records it as it is."""
    return sample_cfa(picture)[:, None] if batch.noisy.shape[1] == 4 else picture


def _measured(batch: Batch) -> Tensor:
    """(N, C, H, W): what it did record."""
    return unpack_cfa(batch.noisy)[:, None] if batch.noisy.shape[1] == 4 else batch.noisy
