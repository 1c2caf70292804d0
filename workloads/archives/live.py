"""One live line for a run over an archive, on a terminal only: rate, remaining time, failures."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from library.inference.archive import Summary

T = TypeVar("T")


def shown(results: Generator[T, None, None], *, total: int, summary: Summary) -> Generator[T, None, None]:
    """The results as they come. `summary` is read for what has failed; closing this closes `results`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}"),
    )
    console = Console(stderr=True)
    start, num_ended = time.monotonic(), 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task(summary.verb, total=total, rate="", failures="")
        try:
            for result in results:
                yield result
                num_ended += 1
                rate = 3600 * num_ended / (time.monotonic() - start)
                failures = f"{len(summary.failures)} failed" if summary.failures else ""
                bar.update(line, completed=num_ended, rate=f"{rate:,.0f} an hour", failures=failures)
        finally:
            results.close()
