"""AdamW and its learning rate as a pure function of the step, so that a schedule has no state to lose."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from library.config import Frozen
from library.models.blocks.image_model import ImageModel

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Frozen):
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.9)
    weight_decay: float = Field(default=1e-4, ge=0)
    clip_grad_norm: float = Field(default=1.0, gt=0)
    """Longest gradient, over all parameters, that is applied as it is; longer ones are shortened to it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises from 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warm-up: a half cosine down to 0 at the last step (Loshchilov, Hutter 2017), or no change."""

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of update number `step`, counted from 0, in a run of `steps`."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "constant":
            return self.lr * warmup
        progress = max(0, step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return self.lr * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def build(self, model: ImageModel) -> torch.optim.AdamW:
        """An optimizer over the model's own parameter groups."""
        groups = [
            {
                "params": group.parameters,
                "name": group.name,
                "lr_multiplier": group.lr_multiplier,
                "weight_decay": self.weight_decay if group.decays else 0.0,
            }
            for group in model.parameter_groups()
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
