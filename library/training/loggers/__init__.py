"""Programs that show a run's numbers while it trains, one file each. What they have in common stands here.

`metrics.jsonl` is the record of a run; a logger is a copy of it for others to look at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from library.config import Component


class Logger(Protocol):
    """Gets what `metrics.jsonl` gets. Only the worker that leads has one."""

    def start(self, step: int) -> None:
        """Begin at `step` updates. What was logged of later steps is logged again, with the same bits, and must not
        show twice."""
        ...

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Values after `step` updates, by their names without the split."""
        ...

    def flush(self) -> None:
        """Send what is buffered."""
        ...

    def close(self) -> None:
        """The training has ended by itself, at its last step or early. One that dies does not come here."""
        ...


class LoggerConfig(Component):
    """Settings of a logger; `build` makes it for one run."""

    def build(self, run_folder: Path | UPath, run_name: str, config: Mapping[str, Any]) -> Logger:
        """The logger of a run.

        run_folder  absolute, or a URI
        config      of the run, resolved: JSON
        """
        raise NotImplementedError(f"{type(self).__name__} must build its logger")
