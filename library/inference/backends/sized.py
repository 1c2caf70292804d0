"""What backends have in common that compile a graph for one size of tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from library.bundle import Bundle
from library.inference.backends.base import BackendName, Precision
from library.inference.backends.golden import Run, check_sides, check_sides_in_half_precision, running
from library.inference.backends.graph import cached_graph, sized_graph

_MOST_SIZES = 3
"""Compiled graphs that are kept: a camera's, the same turned, and another camera's."""


class SizedBackend(ABC):
    """Compiles the bundle's graph for the sides of what it is given, since libraries plan memory and kernels best for
    sides that they know, and keeps what it has compiled last.

    A graph of a new size is another program, with other kernels: what it computes is compared with PyTorch before it is
    used.
    """

    name: BackendName
    title: str
    """As its makers write it."""

    def __init__(self, bundle: Bundle, precision: Precision, num_threads: int) -> None:
        self.precision: Precision = precision
        self._bundle = bundle
        self._num_threads = num_threads
        self._graph = cached_graph(bundle)
        self._compiled: OrderedDict[tuple[int, int], Run] = OrderedDict()

    def run(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if (height, width) not in self._compiled:
            self._compiled[height, width] = self._checked(height, width)
            if len(self._compiled) > _MOST_SIZES:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end((height, width))
        with running(self._bundle, self.title):
            return torch.from_numpy(self._compiled[height, width](np.ascontiguousarray(x.numpy())))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths that are compiled, those used last at the end."""
        return list(self._compiled)

    @property
    def label(self) -> str:
        return f"{self.title} in {self.precision}"

    def _checked(self, height: int, width: int) -> Run:
        with running(self._bundle, self.title):
            sized = sized_graph(self._bundle, self._graph, (height, width))
            run = self.compiled(sized.SerializeToString())
            check = check_sides if self.precision == "fp32" else check_sides_in_half_precision
            check(self._bundle, run, height, width, self.label)
        return run

    @abstractmethod
    def compiled(self, content: bytes) -> Run:
        """What computes an ONNX file."""
