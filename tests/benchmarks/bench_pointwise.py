"""1x1 convolutions on one thread: `pointwise` against a plain nn.Conv2d, forward and backward, in one run.

python -m tests.benchmarks.bench_pointwise   (from the project's root)
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from library.models.blocks.pointwise import pointwise

SHAPES = [(16, 32, 64), (16, 16, 64), (32, 64, 32), (64, 128, 16)]
"""Channels in, channels out, side: the 1x1 layers of the demo's NAFNet on a batch of 8 crops of 128 px."""


def step_of(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    layer = layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def step() -> None:
        y = layer(x)
        y.backward(y.detach())

    return step


def milliseconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, python {platform.python_version()}, {platform.machine()}")
    for channels, out_channels, side in SHAPES:
        x = torch.randn(8, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        ours, plain = step_of(pointwise(channels, out_channels), x), step_of(nn.Conv2d(channels, out_channels, 1), x)
        for _ in range(5):
            ours(), plain()
        times = [(milliseconds(ours), milliseconds(plain)) for _ in range(51)]
        a, b = (statistics.median(column) for column in zip(*times, strict=True))
        shape = f"{channels:>3} -> {out_channels:>3} at {side} px"
        print(f"{shape}: pointwise {a:.2f} ms, nn.Conv2d {b:.2f} ms, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
