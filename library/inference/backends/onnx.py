"""ONNX Runtime on the CPU, in float32."""

from __future__ import annotations

from typing import Literal

import torch

from library.bundle import Bundle
from library.errors import ConfigError
from library.inference.backends.base import Precision
from library.inference.backends.golden import Run
from library.inference.backends.packages import need, package
from library.inference.backends.sized import SizedBackend


class OnnxBackend(SizedBackend):
    """ONNX Runtime. Needs the extra [export]."""

    name: Literal["onnx"] = "onnx"
    title = "ONNX Runtime"

    def __init__(self, bundle: Bundle, precision: Precision, *, num_threads: int | None = None) -> None:
        if precision != "fp32":
            raise ConfigError(
                f"precision is {precision}, and ONNX Runtime computes convolutions on the CPU in fp32 only: "
                "set precision to fp32, or backend to openvino or torch"
            )
        need("onnxruntime")
        super().__init__(bundle, precision, num_threads or torch.get_num_threads())

    def compiled(self, content: bytes) -> Run:
        return onnx_session(content, num_threads=self._num_threads)


def onnx_session(content: bytes, *, num_threads: int | None = None) -> Run:
    """What computes an ONNX file in ONNX Runtime on the CPU; `num_threads` None: as many as PyTorch uses."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 4  # it says as an exception what went wrong
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]
