"""1x1 convolutions that are as fast on one thread as on many."""

from __future__ import annotations

from torch import nn


def pointwise(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Conv2d:
    """A 1x1 convolution, (N, in_channels, H, W) -> (N, out_channels, H, W).

    A dilation means nothing to a kernel of one pixel. It keeps PyTorch from computing it with its own unblocked kernel,
    which it prefers for 1x1 on a single thread (`ConvParams::use_mkldnn`); see tests/benchmarks/bench_pointwise.py.
    """
    return nn.Conv2d(in_channels, out_channels, 1, dilation=2, bias=bias)
