"""Transfer functions between scene-linear values and code values.

All are elementwise on any shape in float32 or float64, take any finite value (negatives are noise around black, not
errors), and have finite gradients everywhere, so that a loss can look through them. Branches not taken are clamped,
since `torch.where` multiplies their gradient by zero and an infinite one would become NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ITU-R BT.2100-2 table 4: the constants of PQ.
_M1, _M2 = 2610 / 16384, 2523 / 32
_C1, _C2, _C3 = 3424 / 4096, 2413 / 128, 2392 / 128

# Academy S-2016-001, "ACEScct": a logarithm with a straight toe.
_LOG_BREAK, _LOG_SLOPE, _LOG_OFFSET = 2.0**-7, 10.5402377416545, 0.0729055341958355

# The slope of PQ is infinite at 0. Below this scene-linear value, the chord through the origin stands in for the curve,
# which it misses by less than 3e-5 (two steps of 16 bits). `_PQ_TOE_CODE` is the curve's value there.
_PQ_TOE, _PQ_TOE_CODE = 1e-6, 6.06704668e-5


def srgb_encode(linear: Tensor) -> Tensor:
    """Linear light to sRGB code values (IEC 61966-2-1): 0 ... 1 to 0 ... 1; odd for negatives, continued above 1."""
    magnitude = linear.abs().clamp_min(0.0031308)
    curve = linear.sign() * (1.055 * magnitude ** (1 / 2.4) - 0.055)
    return torch.where(linear.abs() <= 0.0031308, 12.92 * linear, curve)


def srgb_decode(encoded: Tensor) -> Tensor:
    """sRGB code values to linear light: the inverse of `srgb_encode`, on the same ranges."""
    magnitude = encoded.abs().clamp_min(0.04045)
    curve = encoded.sign() * ((magnitude + 0.055) / 1.055) ** 2.4
    return torch.where(encoded.abs() <= 0.04045, encoded / 12.92, curve)


def gamma22_encode(linear: Tensor) -> Tensor:
    """v ** (1 / 2.2) above 0, unchanged below: the display gamma of RawNIND's losses, above 1 continued.

    Its slope grows without bound towards 0 from above (finite at every float, 1 at and below 0): a loss on dark noise
    is noisy in it.
    """
    power = linear.clamp_min(torch.finfo(linear.dtype).tiny) ** (1 / 2.2)
    return torch.where(linear > 0, power, linear)


def gamma22_decode(encoded: Tensor) -> Tensor:
    """v ** 2.2 above 0, unchanged below: the inverse of `gamma22_encode`, on the same ranges."""
    return torch.where(encoded > 0, encoded.clamp_min(0) ** 2.2, encoded)


def root_encode(linear: Tensor, offset: float | Tensor = 0.02) -> Tensor:
    """A square root that makes the variance of shot noise uniform (Anscombe 1948): 0 ... 1 to 0 ... 1, above continued.

    linear  scene-linear; below 0 the curve goes on as its tangent, which keeps the noise around black
    offset  above 0: where the curve bends, about the noise floor; near black it is almost a line, as fits read noise.
            A tensor broadcasts to `linear`
    """
    root, scale = _root_constants(offset)
    # sqrt(v + offset) - sqrt(offset), without the cancellation near 0; where v is below 0 the divisor stays that of 0.
    return linear * (scale / (torch.sqrt(linear.clamp_min(0) + offset) + root))


def root_decode(encoded: Tensor, offset: float | Tensor = 0.02) -> Tensor:
    """The inverse of `root_encode` for the same offset, on the same ranges."""
    root, scale = _root_constants(offset)
    unscaled = encoded / scale
    return unscaled * (unscaled.clamp_min(0) + 2 * root)


def _root_constants(offset: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """sqrt(offset), and the factor that brings 1 to 1."""
    root = offset**0.5
    return root, 1 / ((1 + offset) ** 0.5 - root)


def pq_encode(scene_linear: Tensor) -> Tensor:
    """Scene-linear to PQ code values: the OETF of ITU-R BT.2100-2 table 4 (OOTF by BT.709 and BT.1886, inverse EOTF).

    scene_linear  0 ... 1, where 1 is 10,000 cd/m2 on the reference display; odd for negatives, continued above 1
    returns       0 ... 1 likewise; a straight line below 1e-6, where the standard's slope runs to infinity
    """
    scene = 59.5208 * scene_linear.abs().clamp_min(_PQ_TOE)
    video = torch.where(scene < 0.018, 4.5 * scene, 1.099 * scene**0.45 - 0.099)
    display = (video**2.4 / 100) ** _M1  # 100 cd/m2 of 10,000
    curve = ((_C1 + _C2 * display) / (1 + _C3 * display)) ** _M2
    line = scene_linear * (_PQ_TOE_CODE / _PQ_TOE)
    return torch.where(scene_linear.abs() < _PQ_TOE, line, scene_linear.sign() * curve)


def pq_decode(encoded: Tensor) -> Tensor:
    """PQ code values to scene-linear: the inverse of `pq_encode`.

    encoded  0 ... 1; odd for negatives, continued up to 1.9 (no light has a code of 1.99)
    returns  scene-linear, 0 ... 1 likewise
    """
    code = encoded.abs().clamp_min(_PQ_TOE_CODE) ** (1 / _M2)
    display = ((code - _C1) / (_C2 - _C3 * code)) ** (1 / _M1)
    video = (100 * display) ** (1 / 2.4)
    # BT.709's two pieces miss each other by 0.3 %: a code between them is the light at which the upper one starts.
    power = (((video + 0.099) / 1.099) ** (1 / 0.45)).clamp_min(0.018)
    curve = torch.where(video < 0.081, video / 4.5, power) / 59.5208
    line = encoded * (_PQ_TOE / _PQ_TOE_CODE)
    return torch.where(encoded.abs() < _PQ_TOE_CODE, line, encoded.sign() * curve)


def log_encode(linear: Tensor) -> Tensor:
    """ACEScct (Academy S-2016-001): 17.52 stops over 0 ... 1, mid grey 0.18 at 0.4136, any negative on a straight line.

    Alone among these curves it does not keep 0 and 1: black has the code 0.073, and white 0.555.
    """
    curve = (torch.log2(linear.clamp_min(_LOG_BREAK)) + 9.72) / 17.52
    return torch.where(linear <= _LOG_BREAK, _LOG_SLOPE * linear + _LOG_OFFSET, curve)


def log_decode(encoded: Tensor) -> Tensor:
    """The inverse of `log_encode`, on any value."""
    at_break = _LOG_SLOPE * _LOG_BREAK + _LOG_OFFSET
    return torch.where(encoded <= at_break, (encoded - _LOG_OFFSET) / _LOG_SLOPE, 2 ** (encoded * 17.52 - 9.72))
