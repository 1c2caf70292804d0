"""Rounding and bounds through which a gradient finds its way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def round_straight_through(x: Tensor) -> Tensor:
    """Halves rounded up; the gradient is that of the identity (Theis et al. 2017, "Lossy Image Compression with
    Compressive Autoencoders").

    Up rather than to even, since x + 1/2 and its floor are the same operation everywhere.
    """
    return x + (torch.floor(x + 0.5) - x).detach()


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """x within [low, high]. A gradient passes where x is inside, and where it would bring x back inside.

    With a plain clamp whatever has strayed outside would stay there for ever.
    """
    return _Bounded.apply(x, low, high)  # pyright: ignore[reportReturnType]


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), (x,), (low, high) = gradients, ctx.saved_tensors, ctx.bounds
        # A descent moves x against its gradient.
        passes = ((x >= low) | (gradient < 0)) & ((x <= high) | (gradient > 0))
        return gradient * passes, None, None
