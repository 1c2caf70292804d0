"""How far a network looks, and on which grid: measured on the network, so that it cannot disagree with the code.

A NaN spreads to exactly those outputs that depend on the input it stands in, whatever the weights (0 * NaN is NaN). A
column of NaN at position q therefore shows the interval of outputs that depend on q. The farthest any such interval
extends is the reach; the intervals repeat with the lattice (a network with 2^k pooling treats positions differently
modulo 2^k).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

_LARGEST_LATTICE = 64
_WIDEST_PROBE = 4096


class Geometry(NamedTuple):
    reach: int
    """Input pixels to each side that can change an output pixel."""
    lattice: int
    """Period of the network's grid, input pixels."""

    @property
    def halo(self) -> int:
        """The reach rounded up to the lattice: what a tile must carry around it."""
        return -(-self.reach // self.lattice) * self.lattice


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """For a network that is built to be asked something: on the CPU, and without changing the random numbers that
    weights and data are drawn from afterwards.

    Not on the meta device, much of which is written in Python: it imports torch's compiler, for two seconds.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        yield


def probe_geometry(model: nn.Module, in_channels: int, scale: int) -> Geometry:
    """Reach and lattice of a network in input pixels.

    model    (N, in_channels, h, w) -> (N, C, scale * h, scale * w); left as it was
    raises   ValueError when every output depends on every input (global pooling), which no tiling can honour
    """
    probe = copy.deepcopy(model).float().cpu().eval()
    lattice = smallest_side(probe, in_channels, scale)
    width = max(256, 8 * lattice)
    while width <= _WIDEST_PROBE:
        positions = torch.arange(2 * lattice) + (width // 2 // lattice - 1) * lattice
        spread = torch.stack(
            [_dependents(probe, in_channels, scale, width, lattice, positions, axis) for axis in (2, 3)]
        )
        before, after = (positions - spread[..., 0]).amax(0), (spread[..., 1] - positions).amax(0)
        if (positions - before).min() > 0 and (positions + after).max() < width - 1:
            for reach in (before, after):
                if not torch.equal(reach[lattice:], reach[:lattice]):
                    raise ValueError(
                        f"{type(model).__name__} does not repeat every {lattice} pixels, so "
                        "tiles cannot be placed on its grid"
                    )
            return Geometry(int(max(before.max(), after.max())), lattice)
        width *= 2
    raise ValueError(
        f"{type(model).__name__} looks farther than {_WIDEST_PROBE // 2} pixels: "
        "it has a global operation and cannot be tiled"
    )


@torch.no_grad()
def probe_reach(
    function: Callable[[torch.Tensor], torch.Tensor], channels: int, period: int, outputs_per_period: int
) -> int:
    """How many inputs beside those that an output stands for can change it, along either axis.

    function            (1, channels, h, w) -> (1, C, h', w'), on the CPU, h' / h being outputs_per_period / period
    period              inputs after which the function repeats itself
    outputs_per_period  for analysis fewer than inputs, for synthesis more
    """
    length = 16 * period
    while length <= _WIDEST_PROBE * max(1, period // 8):
        middle = length // 2 // period * period
        reach = 0
        for axis in (2, 3):
            for position in range(middle, middle + period):
                shape = [1, channels, 2 * period, 2 * period]
                shape[axis] = length
                x = torch.full(shape, 0.5)
                x.select(axis, position).fill_(torch.nan)
                hit = function(x).isnan().any(dim=1, keepdim=True).any(dim=5 - axis, keepdim=True).flatten().nonzero()
                # An output stands for inputs from .. to; the farthest that see this position lie on either side of it.
                _, first_to = _inputs_of(int(hit.min()), period, outputs_per_period)
                last_from, _ = _inputs_of(int(hit.max()), period, outputs_per_period)
                reach = max(reach, position - first_to, last_from - position)
        if reach < length // 2 - period:
            return reach
        length *= 2
    raise ValueError(f"looks farther than {length // 4} pixels: it has a global operation and cannot be tiled")


def _inputs_of(output: int, period: int, outputs_per_period: int) -> tuple[int, int]:
    """First and last input that an output stands for."""
    first = output * period // outputs_per_period
    return first, -(-(output + 1) * period // outputs_per_period) - 1


@torch.no_grad()
def smallest_side(model: nn.Module, in_channels: int, scale: int) -> int:
    """The smallest square that a network on the CPU takes: with less, a pooling has nothing left or a skip does not
    fit."""
    for side in range(1, _LARGEST_LATTICE + 1):
        try:
            y = model(torch.zeros(1, in_channels, side, side))
        except RuntimeError:
            continue
        if y.shape[-2:] == (scale * side, scale * side):
            return side
    raise ValueError(f"{type(model).__name__} takes no square of up to {_LARGEST_LATTICE} pixels")


@torch.no_grad()
def _dependents(
    model: nn.Module, in_channels: int, scale: int, width: int, height: int, positions: torch.Tensor, axis: int
) -> torch.Tensor:
    """(num_positions, 2): first and last output, in input pixels along `axis`, that depend on each position."""
    intervals = []
    for position in positions.tolist():
        shape = [1, in_channels, height, height]
        shape[axis] = width
        x = torch.full(shape, 0.5)
        x.select(axis, position).fill_(torch.nan)
        y = model(x.contiguous(memory_format=torch.channels_last))
        hit = y.isnan().any(dim=1, keepdim=True).any(dim=5 - axis, keepdim=True).flatten().nonzero().flatten() // scale
        intervals.append((int(hit.min()), int(hit.max())) if len(hit) else (position, position))
    return torch.tensor(intervals)
