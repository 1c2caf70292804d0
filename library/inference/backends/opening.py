"""The gate: no backend or device computes a real file before it has reproduced the bundle's golden tiles here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from library.bundle import Bundle
from library.errors import ConfigError
from library.inference.backends.base import Backend, BackendName, Precision
from library.inference.backends.golden import LightnessError, check_golden_tiles, check_half_precision
from library.inference.backends.onnx import OnnxBackend
from library.inference.backends.openvino import OpenVinoBackend
from library.inference.backends.torch import TorchBackend


@dataclass(frozen=True)
class Opened:
    """A backend that has passed, and by how much."""

    backend: Backend
    device: str
    difference: float | None
    """In float32: largest on the golden tiles, scene-linear."""
    lightness: LightnessError | None
    """In half precision."""

    def __str__(self) -> str:
        what = f"{self.backend.name} in {self.backend.precision} on {self.device}"
        if self.lightness is not None:
            return f"{what} reproduces the golden tiles but for {self.lightness}"
        return f"{what} reproduces the golden tiles within {self.difference:.2g} of white"


def open_backend(bundle: Bundle, backend: BackendName, precision: Precision, *, device: str = "cpu") -> Opened:
    """A backend for a bundle, once it has reproduced the golden tiles: in float32 within the bundle's tolerance, in
    half precision so that nobody would see it (`LightnessError`).

    device  such as "cpu" or "cuda", for torch; the others run on the CPU
    raises  BundleError naming backend, error and tolerance; ConfigError for what does not go together, for a precision
            that the processor does not have, or without the packages of the extra [export]
    """
    if backend == "torch":
        opened: Backend = TorchBackend(bundle, precision, device=device)
    elif device != "cpu":
        raise ConfigError(f"device is {device}, and backend {backend} runs on the CPU: set backend to torch")
    else:
        opened = {"onnx": OnnxBackend, "openvino": OpenVinoBackend}[backend](bundle, precision)
    what = f"{backend} in {precision} on {device}"

    def run(x: np.ndarray) -> np.ndarray:
        return opened.run(torch.from_numpy(x)).numpy()

    if precision == "fp32":
        return Opened(opened, device, check_golden_tiles(bundle, run, what), None)
    return Opened(opened, device, None, check_half_precision(bundle, run, what))
