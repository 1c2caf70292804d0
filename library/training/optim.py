"""AdamW over the parts of a model, and learning rates as pure functions of the step, so that a schedule has no state to
lose; what a plateau has done so far is kept in the run's progress."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from library.config import Frozen
from library.models.blocks.trainable import Trainable
from library.training.checkpoint import Progress

Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Cosine(Frozen):
    """A half cosine down to `floor` at the last step (Loshchilov, Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(default=0.0, ge=0, le=1)
    """Share of the highest rate that is left at the end."""

    def factor(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Constant(Frozen):
    kind: Literal["constant"] = "constant"

    def factor(self, progress: float) -> float:
        return 1.0


class Plateau(Frozen):
    """Lower the rate when validation no longer improves: as long as any metric reaches a new best, nothing happens."""

    kind: Literal["plateau"] = "plateau"
    patience: int = Field(gt=0)
    """Optimizer steps without any new best after which the rate is lowered, at the next validation."""
    factor_per_decay: float = Field(default=0.85, gt=0, lt=1)

    def factor(self, progress: float) -> float:
        return 1.0

    def after_validation(self, progress: Progress, *, improved: bool) -> None:
        """Note in `progress` what a validation means for the rate."""
        if improved:
            progress.patience_start = progress.step
        elif progress.step - progress.patience_start >= self.patience:
            progress.lr_scale *= self.factor_per_decay
            progress.patience_start = progress.step


AnySchedule = Annotated[Cosine | Constant | Plateau, Field(discriminator="kind")]


class OptimConfig(Frozen):
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    lr_multipliers: dict[str, Positive] = Field(default_factory=dict)
    """Factors for parts of the model, over those that the model gives itself: {head: 10}. All decay alike."""
    betas: tuple[Decay, Decay] = (0.9, 0.9)
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of AdamW, decoupled; not applied to parameters of one dimension (biases, norms). 0 makes it Adam."""
    clip_grad_norm: Positive | None = 1.0
    """Longest gradient, over all parameters, that is applied as it is; longer ones are shortened to it, with null none
    is."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises from 0."""
    schedule: AnySchedule = Cosine()
    """Of the rate after warm-up; counted anew in every stage."""

    def lr_at(self, step: int, steps: int, lr_scale: float = 1.0) -> float:
        """Learning rate of update number `step`, counted from 0, in a stage of `steps`.

        lr_scale  what a plateau schedule has come to (`Progress.lr_scale`)
        """
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        progress = max(0, step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.lr * warmup * lr_scale * self.schedule.factor(min(1.0, progress))

    def build(self, model: Trainable) -> torch.optim.AdamW:
        """An optimizer over all parts of the model, frozen ones too, so that its state fits every stage."""
        groups = []
        for part in model.parameter_groups():
            multiplier = self.lr_multipliers.get(part.name, part.lr_multiplier)
            for decays in (True, False):
                parameters = [p for p in part.parameters if (p.ndim > 1) == decays]
                if parameters:
                    decay = self.weight_decay if decays else 0.0
                    groups.append({"params": parameters, "lr_multiplier": multiplier, "weight_decay": decay})
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
