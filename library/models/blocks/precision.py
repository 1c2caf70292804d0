"""Islands of float32 inside a network that runs in bfloat16."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A block in which operations on `x`'s device are not autocast; also where there is no autocast, as on the meta
    device."""
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
