"""PyTorch, on whatever device it knows. In float32 on the CPU, tiles change no bit of its results."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from library.bundle import Bundle
from library.inference.backends.base import Precision


class TorchBackend:
    """Runs a bundle's own module, channels_last, bf16 by autocast: colour and levels stay in float32."""

    name: Literal["torch"] = "torch"

    def __init__(self, bundle: Bundle, precision: Precision, *, device: str = "cpu") -> None:
        self.precision: Precision = precision
        self.device = torch.device(device)
        self._model = bundle.model.to(self.device)

    def run(self, x: Tensor) -> Tensor:
        x = x.to(self.device).contiguous(memory_format=torch.channels_last)
        half = self.precision == "bf16"
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            return self._model(x).float().cpu()
