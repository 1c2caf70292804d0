"""Many factorised priors that compete for each position of the latents, as in RawNIND's compression models (Brummer, De
Vleeschouwer 2025).

Each prior gives every channel a distribution of its own, by a cumulative distribution learned as in Balle et al. 2018,
"Variational Image Compression with a Scale Hyperprior", appendix 6.1, with one unit a layer. A position takes the prior
that codes all its channels in the fewest bits, and says which one it took.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CURVE_PARAMETERS = 11
"""Four slopes, four shifts, and a bend after each but the last."""
MAX_TABLE_VALUES = 255
"""Values of a prior's frequency table; what lies beyond is escaped."""
_SMALLEST_LIKELIHOOD = 1e-10
_TAIL = 2.0**-15
"""Mass at each end of a distribution that its frequency table leaves to the escape."""
_FARTHEST = 2**20
_USAGE_KEPT = 0.99
"""Of the moving average of usage, at each pass: it looks back over a hundred."""
_UNIFORM_SHARE = 2.0**-6
"""Of the distribution that prior indices are coded with: one that was never taken costs log2(64) bits more than if all
were alike, the others 0.02 bits more than their share."""
_ELEMENTS_AT_ONCE = 2**20


class PriorBits(NamedTuple):
    choice: Tensor
    """(N, h, w) int64: the prior of each position."""
    of_choice: Tensor
    """(N, h, w): bits that say which prior it is."""
    of_values: Tensor
    """(N, h, w): bits of all channels under that prior."""


class CompetingPriors(nn.Module):
    """(N, channels, h, w) latents -> the prior of each position, and what both cost.

    revive_unused_for  passes of training without being taken after which a prior is dead
    revive_share       of the positions of a picture, those that cost most, up to so many train a dead prior instead of
                       the cheapest one, so that it gets a gradient again

    All it learns and counts is in its `state_dict`. In evaluation mode nothing is counted, and no position given away.
    """

    usage: Tensor
    """(num_priors,): share of all positions that take each prior, averaged over the last passes of training."""
    unused_for: Tensor
    """(num_priors,) int64: passes of training since each prior was last the cheapest anywhere."""

    def __init__(self, num_priors: int, channels: int, *, revive_unused_for: int, revive_share: float) -> None:
        super().__init__()
        self.revive_unused_for, self.revive_share = revive_unused_for, revive_share
        self.curves = nn.Parameter(torch.empty(num_priors, NUM_CURVE_PARAMETERS, channels))
        nn.init.normal_(self.curves, std=0.01)
        self.register_buffer("usage", torch.full((num_priors,), 1 / num_priors))
        self.register_buffer("unused_for", torch.zeros(num_priors, dtype=torch.int64))

    def forward(self, q: Tensor, seeds: Tensor | None) -> PriorBits:
        """
        q      (N, channels, h, w) float32, rounded or with uniform noise of a unit's width in its place
        seeds  (N,) int64 of the draws which dead prior is revived where; None: none is
        """
        if not self.training:
            return self.as_coded(q)
        q = q.movedim(1, -1)
        choice, cost = self.cheapest(q)
        bits = self._priced(q, choice if seeds is None else self._with_revived(choice, cost, seeds))
        self._count(choice)
        return bits

    def as_coded(self, q: Tensor) -> PriorBits:
        """What (N, channels, h, w) rounded latents cost in a file; counts nothing, also while training."""
        q = q.movedim(1, -1)
        choice, cost = self.cheapest(q)
        # The curves of every position, which a gradient needs, are many times the latents.
        return self._priced(q, choice) if torch.is_grad_enabled() else PriorBits(choice, self._index_bits(choice), cost)

    @torch.no_grad()
    def cheapest(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """For q (..., channels): the prior that needs the fewest bits for the channels, its index not counted, and
        these bits; both (...). Without gradient: with one, the likelihoods under all priors would be kept."""
        values, shapes = q.reshape(-1, q.shape[-1]), self._shapes()
        choice = torch.zeros(len(values), dtype=torch.int64, device=q.device)
        cost = torch.full((len(values),), math.inf, device=q.device)
        at_once = max(1, _ELEMENTS_AT_ONCE // max(1, values.numel()))
        for first in range(0, len(shapes), at_once):
            least, index = _bits(values, shapes[first : first + at_once, None]).sum(dim=-1).min(dim=0)
            better = least < cost
            choice, cost = torch.where(better, index + first, choice), torch.where(better, least, cost)
        return choice.view(q.shape[:-1]), cost.view(q.shape[:-1])

    @property
    def index_probabilities(self) -> Tensor:
        """(num_priors,), what an index is coded with: its usage, and a little for those that were not used."""
        return (1 - _UNIFORM_SHARE) * self.usage / self.usage.sum() + _UNIFORM_SHARE / len(self.usage)

    @torch.no_grad()
    def distributions(self) -> tuple[list[np.ndarray], list[int]]:
        """Probabilities of consecutive integers, and the first of them, for each prior and channel (prior by prior)
        and, last, for the indices of the priors; float64. What is missing to 1 lies beyond."""
        shapes = self._shapes(torch.float64)
        middle = _first_integer_above(0.0, shapes)
        edge = math.log(_TAIL / (1 - _TAIL))
        first, last = _first_integer_above(edge, shapes), _first_integer_above(-edge, shapes)
        # A wide distribution keeps what lies around its median.
        half = MAX_TABLE_VALUES // 2
        too_wide = last - first >= MAX_TABLE_VALUES
        first, last = torch.where(too_wide, middle - half, first), torch.where(too_wide, middle + half, last)
        offsets = torch.arange(int((last - first).max()) + 1, device=first.device)
        rows, smallest = [], first.flatten().tolist()
        for shape, start, size in zip(shapes, first, (last - first + 1).tolist(), strict=True):
            likelihoods = _likelihoods((start + offsets[:, None]).double(), shape).T.cpu().numpy()
            # Never quite certain, since a latent may always turn out otherwise.
            rows += [np.minimum(row[:n], 1 - 2 * _TAIL) for row, n in zip(likelihoods, size, strict=True)]
        return [*rows, self.index_probabilities.double().cpu().numpy()], [*smallest, 0]

    def _shapes(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(num_priors, 11, channels): slopes above 0, shifts, bends between -1 and 1."""
        slopes, shifts, bends = self.curves.to(dtype).split((4, 4, 3), dim=1)
        return torch.cat([F.softplus(slopes), shifts, torch.tanh(bends)], dim=1)

    def _priced(self, q: Tensor, choice: Tensor) -> PriorBits:
        return PriorBits(choice, self._index_bits(choice), self._bits_under(choice, q))

    def _index_bits(self, choice: Tensor) -> Tensor:
        return -self.index_probabilities.log2()[choice]

    def _bits_under(self, choice: Tensor, q: Tensor) -> Tensor:
        """(..., channels) -> (...), each position under the prior chosen for it."""
        chosen = F.embedding(choice, self._shapes().flatten(1))
        return _bits(q, chosen.unflatten(-1, (NUM_CURVE_PARAMETERS, -1))).sum(dim=-1)

    def _with_revived(self, choice: Tensor, cost: Tensor, seeds: Tensor) -> Tensor:
        """Choices (N, h, w), the most expensive positions of each picture given to dead priors.

        For each picture by itself, so that it does not matter which worker it came to. (The research code counts the
        batch's positions, and also draws priors that are not dead but unused in the batch.)
        """
        dead = (self.unused_for > self.revive_unused_for).nonzero().flatten()
        num_revived = min(len(dead), int(self.revive_share * cost[0].numel()))
        if num_revived == 0:
            return choice
        drawn = []
        for seed in seeds.tolist():
            order = torch.randperm(len(dead), generator=torch.Generator().manual_seed(seed))
            drawn.append(dead[order[:num_revived].to(dead.device)])
        dearest = cost.flatten(1).topk(num_revived).indices
        return choice.flatten(1).scatter(1, dearest, torch.stack(drawn)).view_as(choice)

    @torch.no_grad()
    def _count(self, choice: Tensor) -> None:
        """Note which priors the pictures of all workers took by themselves. Every worker calls it."""
        taken = torch.bincount(choice.flatten(), minlength=len(self.usage))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(taken)
        self.unused_for.copy_(torch.where(taken > 0, 0, self.unused_for + 1))
        self.usage.lerp_(taken / taken.sum(), 1 - _USAGE_KEPT)


def _logits(x: Tensor, shape: Tensor) -> Tensor:
    """Logit of the cumulative distribution at x (..., channels), rising; shape (..., 11, channels)."""
    slopes, shifts, bends = (part.unbind(-2) for part in shape.split((4, 4, 3), dim=-2))
    for slope, shift, bend in zip(slopes, shifts, bends, strict=False):
        x = x * slope + shift
        x = x + bend * torch.tanh(x)
    return x * slopes[3] + shifts[3]


def _likelihoods(q: Tensor, shape: Tensor) -> Tensor:
    """Probability of the unit interval around q (..., channels)."""
    lower, upper = _logits(q - 0.5, shape), _logits(q + 0.5, shape)
    # On the side where sigmoids are small, so that nothing cancels.
    side = torch.where(lower + upper > 0, -1.0, 1.0)
    return (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()


def _bits(q: Tensor, shape: Tensor) -> Tensor:
    """-log2 of the likelihood of q (..., channels); 0 to 33.2."""
    return -torch.log2(_likelihoods(q, shape) + _SMALLEST_LIKELIHOOD)


def _first_integer_above(logit: float, shapes: Tensor) -> Tensor:
    """(num_priors, channels): the smallest integer up to whose upper edge the mass has a logit above the given one."""
    low = torch.full_like(shapes[:, 0], -_FARTHEST, dtype=torch.int64)
    high = -low
    for _ in range(_FARTHEST.bit_length() + 1):
        middle = (low + high) // 2
        above = _logits(middle + 0.5, shapes) > logit
        low, high = torch.where(above, low, middle + 1).minimum(high), torch.where(above, middle, high)
    return high
