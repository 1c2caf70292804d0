"""What the trainings ask of a data set, whichever it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from upath import UPath

from library.datasets.batch import Batch


class Dataset(Protocol):
    """Training batches and validation items as pure functions of the seed, the step and the slot."""

    @property
    def digest(self) -> str:
        """Names what it draws from."""
        ...

    @property
    def validation_scenes(self) -> Sequence[int]:
        """What is validated on, an entry for each item."""
        ...

    def batch(self, step: int, slots: Sequence[int], *, batch_size: int) -> Batch:
        """The samples of some slots of step `step`'s global batch."""
        ...

    def validation_item(self, index: int) -> tuple[str, Batch]:
        """Name and one-image batch of item `index`: the same at every validation."""
        ...


class DatasetConfig(Protocol):
    """The config of one."""

    def prepare(self, folder: str | Path | UPath) -> UPath:
        """Make what is read in training, under `folder`, or find it. Returns its path.

        raises  DataError naming the folder or file that cannot be used
        """
        ...

    def open(self, store: str | Path | UPath, seed: int) -> Dataset:
        """The data set over what `prepare` returned."""
        ...
