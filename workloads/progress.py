"""How far a training run is: one live line on a terminal, and elsewhere a line now and then, by which a queue knows
that it goes on. Read from the run's own metrics, wherever its workers are."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from upath import UPath

from library.files.places import is_local
from library.training.recorder import read_metrics
from workloads.ray_metrics import note_training

T = TypeVar("T")
_LINE_EVERY_S = 60.0


@contextlib.contextmanager
def follow(run_folder: UPath, steps: int) -> Iterator[None]:
    """Show step, loss and validation of the run in `run_folder` until the block ends: as a bar on a terminal, elsewhere
    as a line each minute in which it went on. Ray's exporter is told too, where there is a Ray."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("starting", total=steps)
        done = threading.Event()
        every_s = _LINE_EVERY_S if not console.is_terminal else 0.5 if is_local(run_folder) else 10.0

        def watch() -> None:
            last_step = 0
            while not done.wait(every_s):
                # A storage that is away for a moment is the workers' affair.
                with contextlib.suppress(OSError):
                    latest = {f"{entry['split']}/{entry['name']}": entry for entry in read_metrics(run_folder)}
                    note_training(run_folder.name, latest)
                    step = latest["train/loss"]["step"] if "train/loss" in latest else 0
                    if step > last_step:
                        last_step = step
                        shown = "  ".join(
                            f"{name} {latest[name]['value']:.4g}"
                            for name in ("train/loss", "val/psnr")
                            if name in latest
                        )
                        bar.update(line, completed=step, description=shown)
                        if not console.is_terminal:
                            print(f"step {step} of {steps}  {shown}", file=sys.stderr, flush=True)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


class TrialBar:
    """One live line for a sweep on a terminal; elsewhere a line each minute in which something changed."""

    def __init__(self, num_trials: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._line = self._bar.add_task("trials", total=num_trials)
        self._is_shown = console.is_terminal
        self._printed_at, self._num_trials = time.monotonic(), num_trials
        if self._is_shown:
            self._bar.start()

    def show(self, num_ended: int, description: str) -> None:
        self._bar.update(self._line, completed=num_ended, description=description)
        if not self._is_shown and time.monotonic() - self._printed_at >= _LINE_EVERY_S:
            self._printed_at = time.monotonic()
            print(f"{num_ended} of {self._num_trials} trials  {description}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._is_shown:
            self._bar.stop()


def track(items: Iterable[T], *, total: int, description: str) -> Iterator[T]:
    """The items as they come, with a bar on a terminal, and elsewhere a line each minute in which one came, by which a
    queue knows that it goes on."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from rich.progress.track(items, description, total=total, console=console)
        return
    printed_at = time.monotonic()
    for num_ended, item in enumerate(items, 1):
        if time.monotonic() - printed_at >= _LINE_EVERY_S:
            printed_at = time.monotonic()
            print(f"{description}: {num_ended} of {total}", file=sys.stderr, flush=True)
        yield item
