"""Sensor noise: photon (shot) noise that grows with the signal, and read noise that does not (Foi et al. 2008)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One for a whole tensor, or one for each entry of its first dimension: then an entry's random numbers do not depend on
the entries beside it."""

_MANY = 16
"""Expected counts from which Giles' expansion is good enough, and with which the table ends."""
_ROWS = 64
"""Rows of the table for each expected count."""
_COLUMNS = 64
"""Counts that the table knows, 0 to 63: at `_MANY` a greater one has a probability below 1e-17."""


def add_poisson_gaussian(clean: Tensor, a: float | Tensor, b: float | Tensor, *, generator: Generators) -> Tensor:
    """A noisy exposure of a clean one, of mean `clean` and variance a * clean + b.

    clean      (...) scene-linear, above 1 legal; where it is not above 0 there are no photons, only read noise
    a          variance per unit of signal, >= 0: the value of one electron. Broadcasts to `clean`
    b          variance at black, >= 0. Broadcasts to `clean`
    generator  on the device of `clean`; its seed decides the noise
    returns    (...) float32, unclipped: below 0 around black

    The photon part is a count of `sample_poisson`. ValueError for an `a` or `b` below 0.
    """
    clean = clean.to(torch.float32)
    a, b = _coefficient("a", a, clean), _coefficient("b", b, clean)
    has_photons = a > 0
    light = clean.clamp_min(0).mul_(has_photons.float())
    electron = torch.where(has_photons, a, 1.0)
    photons = sample_poisson(light / electron, generator=generator)
    read_noise = _fill(Tensor.normal_, clean, generator).mul_(b.sqrt())
    return photons.mul_(electron).add_(clean - light).add_(read_noise)


def sample_poisson(mean: Tensor, *, generator: Generators) -> Tensor:
    """Independent Poisson counts, in about a third of the time that `torch.poisson` takes on a CPU.

    mean       (...) float32, from 0 up and finite
    generator  on the device of `mean`; its seed decides the counts
    returns    (...) float32, whole numbers from 0 up

    The law is Poisson's to a total variation of 3e-4 for means near 16, and less for others: 1e-4 below 16 and from 32
    up. Its mean and variance are right to 1e-4 of themselves, or of 1 where they are less.
    """
    uniform, normal = _fill(Tensor.uniform_, mean, generator), _fill(Tensor.normal_, mean, generator)
    return _counts(mean, uniform, normal)


def estimate_noise_variance(x: Tensor, a: float | Tensor, b: float | Tensor) -> Tensor:
    """The variance that `add_poisson_gaussian` gives a signal: a * x + b, and b where x is below 0.

    x        (...) scene-linear: clean, or noisy as a stand-in for it
    a        >= 0, broadcasts to `x`
    b        >= 0, broadcasts to `x`
    returns  (...) float32, in squared units of `x`

    ValueError for an `a` or `b` below 0.
    """
    x = x.to(torch.float32)
    return _coefficient("a", a, x) * x.clamp_min(0) + _coefficient("b", b, x)


def _coefficient(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float32, device=like.device)
    if not (value >= 0).all():
        raise ValueError(
            f"noise coefficient {name} is {value.min().item():g}, a variance cannot be below 0: check the noise profile"
        )
    return value


# Only arithmetic that IEEE 754 rounds in one way makes the counts. The last bit of an exp or erf may depend on where in
# a tensor a number stands, and so on what stands beside it.


def _counts(mean: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Poisson counts, each made of a uniform variable in [0, 1) and a standard normal one."""
    # Where counts are few, the normal variable has no other use: its last digits are a second uniform one.
    few = _few(mean, uniform, (normal * 1024).frac_().abs_())
    many = _many(mean.clamp_min(_MANY), normal)
    # Here and below lerp has weights of 0 and 1, and is exact: torch.where without its branches.
    return few.lerp_(many, mean.clone().ge_(_MANY))


def _few(mean: Tensor, uniform: Tensor, dither: Tensor) -> Tensor:
    """Counts of means below `_MANY`, from the table. A mean between two rows takes either at random, so that it stays
    exact."""
    # The limit: sums may round up, and the means that `_many` answers come here too.
    row = (mean * _ROWS).add_(dither).floor_().clamp_max_(_MANY * _ROWS)
    place = uniform * _COLUMNS
    column = place.floor()
    entry = row.mul_(_COLUMNS).add_(column).int().flatten()
    share = _alias_table(mean.device).index_select(0, entry).view(mean.shape)
    alias = share.floor()
    return alias.lerp_(column, place.sub_(column).lt_(share.sub_(alias)))


def _many(mean: Tensor, normal: Tensor) -> Tensor:
    """Counts of means from `_MANY` up.

    The expansion of the inverse distribution function in Giles 2016, "Algorithm 955", to the order of mean^(-1/2): with
    a normal w, floor(mean + sqrt(mean) w + w^2 / 6 + 1 / 3 - (w^3 + 2 w) / (72 sqrt(mean))).
    """
    root = mean.sqrt()
    slope = (normal * normal).add_(2).div_(root * -72).add_(normal / 6).add_(root)
    return slope.mul_(normal).add_(mean).add_(1 / 3).floor_().clamp_min_(0)


@functools.lru_cache(maxsize=4)
def _alias_table(device: torch.device) -> Tensor:
    """Poisson's law as Walker 1977 draws from it: all columns are equally likely, and each is shared by two counts.

    returns  float32, `_COLUMNS` numbers for each mean of 0, 1 / `_ROWS`, ..., `_MANY`. The fraction of number j is the
             share of count j in its column, and the whole part the count that has the rest
    """
    means = torch.arange(_MANY * _ROWS + 1, dtype=torch.float64)[:, None] / _ROWS
    counts = torch.arange(_COLUMNS, dtype=torch.float64)
    law = (counts.xlogy(means) - means - (counts + 1).lgamma()).exp()
    # In units of a column. A count that keeps its column for itself shares it with itself.
    share, alias = law * (_COLUMNS / law.sum(dim=1, keepdim=True)), counts.repeat(len(means), 1)
    rows, is_open = torch.arange(len(means)), torch.ones_like(share, dtype=torch.bool)
    for _ in range(_COLUMNS - 1):
        # The poorest fills its column up from the richest, and is done.
        poor = share.where(is_open, torch.inf).argmin(dim=1)
        rich = share.where(is_open, -torch.inf).argmax(dim=1)
        alias[rows, poor] = rich.double()
        share[rows, rich] -= 1 - share[rows, poor]
        is_open[rows, poor] = False
    # Below 1 also after rounding to float32, or the whole part would be another count.
    return (alias + share.clamp(0, 1 - 2**-17)).float().flatten().to(device)


def _fill(method: Callable[..., Tensor], like: Tensor, generator: Generators) -> Tensor:
    """Random numbers in the shape of a tensor: `method` is `Tensor.uniform_` or `Tensor.normal_`."""
    values = torch.empty(like.shape, device=like.device)
    if isinstance(generator, torch.Generator):
        return method(values, generator=generator)
    for part, own in zip(values, generator, strict=True):
        method(part, generator=own)
    return values
