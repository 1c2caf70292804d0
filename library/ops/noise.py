"""Sensor noise: photon (shot) noise that grows with the signal, and read noise that does not (Foi et al. 2008)."""

from __future__ import annotations

import torch
from torch import Tensor


def add_poisson_gaussian(clean: Tensor, a: float | Tensor, b: float | Tensor, *, generator: torch.Generator) -> Tensor:
    """A noisy exposure of a clean one, of mean `clean` and variance a * clean + b.

    clean      (...) scene-linear, above 1 legal; where it is not above 0 there are no photons, only read noise
    a          variance per unit of signal, >= 0: the value of one electron. Broadcasts to `clean`
    b          variance at black, >= 0. Broadcasts to `clean`
    generator  on the device of `clean`; its seed decides the noise
    returns    (...) float32, unclipped: below 0 around black

    The photon part is a true Poisson count. ValueError for an `a` or `b` below 0.
    """
    clean = clean.to(torch.float32)
    a, b = _coefficient("a", a, clean), _coefficient("b", b, clean)
    has_photons = (clean > 0) & (a > 0)
    electron = torch.where(has_photons, a, 1.0)
    photons = torch.poisson(torch.where(has_photons, clean / electron, 0.0), generator=generator)
    exposed = torch.where(has_photons, electron * photons, clean)
    read_noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    return exposed + b.sqrt() * read_noise


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
