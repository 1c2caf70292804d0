"""OpenVINO on the CPU, in float32 or bfloat16: the fastest where a processor has bfloat16."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from library.bundle import Bundle
from library.errors import ConfigError
from library.inference.backends.base import Precision
from library.inference.backends.golden import Run
from library.inference.backends.packages import need, package
from library.inference.backends.sized import SizedBackend

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(SizedBackend):
    """OpenVINO. Needs the extra [export]."""

    name: Literal["openvino"] = "openvino"
    title = "OpenVINO"

    def __init__(self, bundle: Bundle, precision: Precision, *, num_threads: int | None = None) -> None:
        need("openvino")
        able = package("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and "BF16" not in able:
            raise ConfigError(
                f"precision is bf16, which OpenVINO does not compute on this processor ({', '.join(able)}): "
                "set precision to fp32"
            )
        super().__init__(bundle, precision, num_threads or torch.get_num_threads())

    def compiled(self, content: bytes) -> Run:
        return openvino_session(content, precision=self.precision, num_threads=self._num_threads)


def openvino_session(source: bytes | Path, *, precision: str = "fp32", num_threads: int | None = None) -> Run:
    """What computes a model in OpenVINO on the CPU.

    source       bytes of an ONNX file, or the path of a `model.xml`
    precision    "fp32" or "bf16"; bf16 is much faster where the processor has it
    num_threads  None: as many as PyTorch uses
    """
    core = package("openvino").Core()
    model = read_onnx(source) if isinstance(source, bytes) else core.read_model(str(source))
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": num_threads or torch.get_num_threads(),
    }
    compiled = core.compile_model(model, "CPU", settings)
    # Its own memory, which the next call overwrites: copied once, and not twice.
    return lambda x: np.array(compiled(x, share_inputs=True, share_outputs=True)[0])


def read_onnx(content: bytes) -> Any:
    """An ONNX file as OpenVINO's model. `convert_model` has the same reader, but reports its use to Google."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "model.onnx")).write_bytes(content)
        return package("openvino").Core().read_model(str(path))
