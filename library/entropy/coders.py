"""The coders that a stream may be written with, by name. All code the same values with the same tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from library.entropy import range_coder, rans
from library.entropy.tables import FrequencyTables

CoderName = Literal["rans", "constriction"]
FIXED_BYTES = 4
"""What a stream costs whatever it holds, if anything: of rANS the number of lanes, and what of a lane's state carries
no values but the check sum."""


class Coder(Protocol):
    """See `rans`. A call without streams says whether what the coder needs is installed."""

    def encode(
        self, streams: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]], tables: FrequencyTables
    ) -> list[bytes]: ...

    def decode(
        self, streams: Sequence[tuple[bytes | memoryview, NDArray[np.integer]]], tables: FrequencyTables
    ) -> list[NDArray[np.int32]]: ...


CODERS: Mapping[CoderName, Coder] = MappingProxyType({"rans": rans, "constriction": range_coder})
