"""What a run over an archive does, live on a terminal: how far, how fast, how much memory, what failed last."""

from __future__ import annotations

import sys
import textwrap
import time
from collections import deque
from collections.abc import Generator
from typing import TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from library.inference.archive import Summary
from library.inference.archive_status import in_words

T = TypeVar("T")
_NUM_REASONS = 3
_RATE_WINDOW_S = 120.0
_LINE_EVERY_S = 60.0


class LiveTable:
    """The lines of a run; `summary` is read for what was done and what has failed."""

    def __init__(self, total: int, summary: Summary) -> None:
        self._summary = summary
        self._start = time.monotonic()
        self._ends: deque[float] = deque()
        self._num_ended = 0
        self._total = total
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._line = self._bar.add_task(summary.verb, total=total)

    def count(self) -> None:
        """One more file has ended."""
        self._num_ended += 1
        self._ends.append(time.monotonic())
        self._bar.update(self._line, completed=self._num_ended)

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for heading in ("rate", "remaining", "failures", "memory of a worker"):
            table.add_column(heading, style="bold", header_style="dim")
        memory = in_words(self._summary.peak_bytes) if self._summary.peak_bytes else "not known yet"
        failures = str(len(self._summary.failures))
        rate = self._rate()
        table.add_row(
            f"{rate:,.0f} raws an hour" if rate else "not known yet",
            _in_words((self._total - self._num_ended) / rate) if rate else "not known yet",
            Text(failures, style="bold red" if self._summary.failures else ""),
            memory,
        )
        reasons = list(self._summary.failures.values())[-_NUM_REASONS:]
        return Group(self._bar, table, *(Text(textwrap.shorten(reason, 200), style="red") for reason in reasons))

    def as_line(self) -> str:
        """How far it is, where nothing can be drawn."""
        rate = self._rate()
        speed = f", {rate:,.0f} raws an hour" if rate else ""
        return f"{self._num_ended} of {self._total} ended, {len(self._summary.failures)} failed{speed}"

    def _rate(self) -> float | None:
        """Files an hour, of late; None until that can be said."""
        now = time.monotonic()
        while self._ends and now - self._ends[0] > _RATE_WINDOW_S:
            self._ends.popleft()
        seconds = min(now - self._start, _RATE_WINDOW_S)
        if len(self._ends) < 2:
            return None if not self._num_ended else 3600 * self._num_ended / (now - self._start)
        return 3600 * len(self._ends) / max(seconds, 1e-3)


def shown(results: Generator[T, None, None], *, total: int, summary: Summary) -> Generator[T, None, None]:
    """The results as they come; closing this closes `results`. Elsewhere than on a terminal a line is printed each
    minute in which something ended, by which a queue knows that the run goes on."""
    console = Console(stderr=True)
    lines = LiveTable(total, summary)
    try:
        if not console.is_terminal:
            said = time.monotonic()
            for result in results:
                lines.count()
                if time.monotonic() - said > _LINE_EVERY_S:
                    said = time.monotonic()
                    print(lines.as_line(), file=sys.stderr, flush=True)
                yield result
            return
        with Live(lines, console=console, refresh_per_second=2):
            for result in results:
                yield result
                lines.count()
    finally:
        results.close()


def _in_words(hours: float) -> str:
    if hours > 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours * 60 >= 1 else "less than a minute"
