"""What a workload has measured so far, a line each: what makes one that was stopped go on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar


class Line(Protocol):
    """Something measured."""

    @property
    def key(self) -> str:
        """Names all that determines the numbers."""
        ...

    def to_line(self) -> str: ...


T = TypeVar("T", bound=Line)


class Journal(Generic[T]):
    """The measurements in a folder's `results.jsonl`. A line that was cut short counts as not there."""

    def __init__(self, folder: Path, from_line: Callable[[str], T]) -> None:
        """
        from_line  raises ValueError, KeyError, TypeError or AttributeError for what is no such line
        """
        self.path = folder / "results.jsonl"
        self.by_key: dict[str, T] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    measurement = from_line(line)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                self.by_key[measurement.key] = measurement

    def append(self, measurement: T) -> None:
        """It is on the disk on return."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")
            file.write(measurement.to_line().encode())
            file.flush()
            os.fsync(file.fileno())
        self.by_key[measurement.key] = measurement


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
