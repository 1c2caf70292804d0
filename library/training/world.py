"""Who computes what in a run of several workers: rank, size, device, and the few collectives the loop needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import nn


def _as_it_is(model: nn.Module) -> nn.Module:
    return model


def _to_nobody(step: int, metrics: Mapping[str, float]) -> None:
    pass


@dataclass(frozen=True)
class World:
    """One worker's place among `size`. The default is a run in one process, on the CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = _as_it_is
    """Makes a model average its gradients over the workers."""
    report: Callable[[int, Mapping[str, float]], None] = _to_nobody
    """Tells whoever started the workers the metrics of a validation. All workers call it."""

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes and reports."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every worker's `value`, by rank. All workers must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values
