"""Classical denoisers at their best: what a learned one has to beat.

All work on the Malvar-demosaiced camera RGB in a variance-stabilised domain, the square root that the networks use too:
there noise is about equal everywhere, as these methods assume. On simulated raws it brought all but the Gaussian, which
does not care, 0.1 to 1.4 dB of developed PSNR over filtering scene-linear values. Each method's parameters are chosen
against the truth, for each picture and metric anew. Nobody can do that in practice: the numbers are upper bounds.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from skimage.filters import gaussian
from skimage.restoration import denoise_bilateral, denoise_nl_means
from torch import Tensor

from library.errors import ConfigError
from library.metrics import compare_camera_rgb
from library.ops.transfer import root_decode, root_encode

Baseline = Literal["gaussian", "bilateral", "wavelet", "nlm", "bm3d"]
BASELINES: tuple[Baseline, ...] = ("gaussian", "bilateral", "wavelet", "nlm")
"""Those that are always here. `bm3d` is when its package is, which everybody must install for themselves."""

Parameters = dict[str, float]
"""Empty: the noisy picture as it is."""
Compare = Callable[[Tensor, Tensor, Tensor, Tensor], Mapping[str, float]]
"""Output, truth, mask and xyz_to_camera to metrics by name."""


@dataclass(frozen=True)
class Best:
    """The most that one method can do for one picture."""

    metrics: dict[str, float]
    """As `compare_camera_rgb`, each with the parameters that are best for it."""
    parameters: dict[str, Parameters]
    """By metric. `sigma` in pixels; `strength` in standard deviations of the noise, which only the truth tells."""
    picture: Tensor
    """(1, 3, H, W) camera RGB at the best developed `psnr`."""
    seconds: float
    """One filtering of the demosaiced picture, mean over the parameters that were tried."""


def check_available(methods: Sequence[Baseline]) -> None:
    """Whether each of these methods can run here.

    raises  ConfigError when `bm3d` is among them and its package is not installed, saying what that asks of a user
    """
    # Its licence allows non-commercial use only, which nothing here may depend on.
    if "bm3d" in methods and importlib.util.find_spec("bm3d") is None:
        raise ConfigError(
            "baseline 'bm3d' needs the package bm3d, which is not part of stillgrain: its licence (Tampere University) "
            "allows non-commercial use only, and asks to name its authors beside results. If that suits you, "
            "`pip install bm3d` in the environment of every worker; otherwise leave bm3d out of the baselines: "
            f"{', '.join(BASELINES)}"
        )


def best_classical(
    noisy: Tensor,
    truth: Tensor,
    mask: Tensor,
    xyz_to_camera: Tensor,
    *,
    methods: Sequence[Baseline] = BASELINES,
    compare: Compare = compare_camera_rgb,
) -> dict[Baseline, Best]:
    """Each method over its grid of parameters and, as one more candidate, doing nothing.

    noisy, truth   (1, 3, H, W) camera RGB at absolute scale, not equal, sides of more than 160 px
    mask           (1, 1, H, W), 1 where a pixel counts, as some must
    xyz_to_camera  (1, 3, 3)
    compare        what a candidate is judged by: metrics by name, more is better, `psnr` among them
    raises         ConfigError for a method that `check_available` refuses
    """
    check_available(methods)
    stabilized = _Stabilized(noisy, truth, mask)
    untouched = compare(noisy, truth, mask, xyz_to_camera)

    def best(method: Baseline) -> Best:
        metrics, picture, seconds = dict(untouched), noisy, 0.0
        parameters: dict[str, Parameters] = {metric: {} for metric in metrics}
        for candidate in _GRIDS[method]:
            start = time.perf_counter()
            output = stabilized.filtered(method, candidate)
            seconds += time.perf_counter() - start
            for metric, value in compare(output, truth, mask, xyz_to_camera).items():
                if value > metrics[metric]:
                    metrics[metric], parameters[metric] = value, candidate
                    picture = output if metric == "psnr" else picture
        return Best(metrics, parameters, picture, seconds / len(_GRIDS[method]))

    return {method: best(method) for method in methods}


def classical_picture(method: Baseline, parameters: Parameters, noisy: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """What one method makes of a picture with parameters that `best_classical` found: (1, 3, H, W) camera RGB.
    Otherwise as there."""
    return _Stabilized(noisy, truth, mask).filtered(method, parameters) if parameters else noisy


class _Stabilized:
    """A noisy picture in the domain of the filters, and the noise's standard deviation there."""

    def __init__(self, noisy: Tensor, truth: Tensor, mask: Tensor) -> None:
        stabilized = root_encode(noisy.float())
        error = (stabilized - root_encode(truth.float()))[mask.expand_as(noisy) > 0]
        self.noise = float(error.square().mean().sqrt())
        self.planes = stabilized[0].numpy()

    def filtered(self, method: Baseline, parameters: Parameters) -> Tensor:
        """(1, 3, H, W) camera RGB."""
        filtered = np.ascontiguousarray(_FILTERS[method](self.planes, self.noise, **parameters), dtype=np.float32)
        return root_decode(torch.from_numpy(filtered))[None]


# --- filters: (3, H, W) stabilised planes and the noise's standard deviation -> the same planes, less noisy ----------


def _gaussian(planes: np.ndarray, noise: float, *, sigma: float) -> np.ndarray:
    return gaussian(planes, sigma, mode="reflect", channel_axis=0)


def _bilateral(planes: np.ndarray, noise: float, *, strength: float, sigma: float) -> np.ndarray:
    """Tomasi and Manduchi 1998."""
    lowest = planes.min()  # it refuses negative values, which mean nothing special here
    pixels = np.moveaxis(planes - lowest, 0, -1)
    filtered = denoise_bilateral(
        pixels, win_size=11, sigma_color=strength * noise, sigma_spatial=sigma, channel_axis=-1, mode="reflect"
    )
    return np.moveaxis(filtered, -1, 0) + lowest


def _nlm(planes: np.ndarray, noise: float, *, strength: float, patch: float) -> np.ndarray:
    """Non-local means (Buades, Coll and Morel 2005)."""
    return denoise_nl_means(
        planes, patch_size=int(patch), patch_distance=9, h=strength * noise, fast_mode=True, channel_axis=0
    )


def _bm3d(planes: np.ndarray, noise: float, *, strength: float) -> np.ndarray:
    """Collaborative filtering (Dabov, Foi, Katkovnik and Egiazarian 2007), by the authors' own program."""
    pixels = np.moveaxis(planes, 0, -1).astype(np.float64)
    return np.moveaxis(importlib.import_module("bm3d").bm3d_rgb(pixels, strength * noise), -1, 0)


# An orthonormal basis: luminance and two colour differences, of which the eye and the scene have less detail.
_OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[3], [2], [6]], dtype=np.float32)
_LEVELS = 4


def _wavelet(planes: np.ndarray, noise: float, *, strength: float) -> np.ndarray:
    """BayesShrink (Chang, Yu and Vetterli 2000) over the undecimated Haar transform (Coifman and Donoho 1995)."""
    margin = 2**_LEVELS
    opponent = np.tensordot(_OPPONENT, planes, axes=1)
    padded = np.pad(opponent, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    shrunk = _shrink(padded, strength * noise, level=0)[:, margin:-margin, margin:-margin]
    return np.tensordot(_OPPONENT.T, shrunk, axes=1)


def _shrink(image: np.ndarray, noise: float, level: int) -> np.ndarray:
    if level == _LEVELS:
        return image
    step = 2**level
    noise /= 2  # white noise is halved in each band, of four samples' means and differences
    top, bottom = _split(image, step, axis=1)
    coarse, *details = (*_split(top, step, axis=2), *_split(bottom, step, axis=2))
    a, b, c = (_soft_threshold(band, noise) for band in details)
    coarse = _shrink(coarse, noise, level + 1)
    return _join(_join(coarse, a, step, axis=2), _join(b, c, step, axis=2), step, axis=1)


def _soft_threshold(band: np.ndarray, noise: float) -> np.ndarray:
    """Chang et al., equation 13: the threshold is the variance of the noise over the deviation of the signal."""
    signal = np.sqrt(np.maximum(np.square(band).mean(axis=(1, 2), keepdims=True) - noise**2, 1e-12))
    return np.sign(band) * np.maximum(np.abs(band) - noise**2 / signal, 0)


def _split(image: np.ndarray, step: int, axis: int) -> tuple[np.ndarray, np.ndarray]:
    shifted = np.roll(image, -step, axis)
    return (image + shifted) / 2, (image - shifted) / 2


def _join(mean: np.ndarray, difference: np.ndarray, step: int, axis: int) -> np.ndarray:
    """Each sample twice, as the first of its pair and as the second: the inverse of `_split`."""
    return (mean + difference + np.roll(mean - difference, step, axis)) / 2


_FILTERS: dict[Baseline, Callable[..., np.ndarray]] = {
    "gaussian": _gaussian,
    "bilateral": _bilateral,
    "wavelet": _wavelet,
    "nlm": _nlm,
    "bm3d": _bm3d,
}
_GRIDS: dict[Baseline, list[Parameters]] = {
    "gaussian": [{"sigma": sigma} for sigma in (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)],
    "bilateral": [{"strength": s, "sigma": sigma} for s in (0.5, 0.7, 1.0, 1.4) for sigma in (1.5, 3.0)],
    "wavelet": [{"strength": s} for s in (1.0, 1.4, 1.7, 2.0, 2.4, 2.8, 3.4)],
    "nlm": [{"strength": s, "patch": patch} for s in (0.7, 0.85, 1.0, 1.2, 1.5) for patch in (3, 5)],
    "bm3d": [{"strength": s} for s in (0.7, 0.85, 1.0, 1.2, 1.5, 1.8)],
}
