"""What computes a bundle's network: one small interface, and the gate that each must pass before it sees a real file.

Results of PyTorch in float32 do not depend on tiles, and are the measure of all others.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

BackendName = Literal["torch", "onnx", "openvino"]
Precision = Literal["fp32", "bf16"]


class Backend(Protocol):
    """Runs one bundle's network in one precision."""

    @property
    def name(self) -> BackendName: ...

    @property
    def precision(self) -> Precision: ...

    def run(self, x: Tensor) -> Tensor:
        """The network's output.

        x        (1, C, h, w) float32 on the CPU, sides multiples of the bundle's lattice
        returns  (1, 3, scale * h, scale * w) float32 on the CPU
        raises   BundleError for sides whose graph does not compute what the bundle does
        """
        ...


def is_exact(backend: BackendName, precision: Precision) -> bool:
    """Whether tiles change no bit of a result. Other libraries choose kernels by the shape of a tile, and half
    precision rounds by the order of summation, so that there a tile's size is part of what a result is."""
    return backend == "torch" and precision == "fp32"
