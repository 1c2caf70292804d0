"""One live line for a training run, on a terminal only: read from the run's own metrics, wherever its workers are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from upath import UPath

from library.files.places import is_local
from library.training.recorder import read_metrics

T = TypeVar("T")


@contextlib.contextmanager
def follow(run_folder: UPath, steps: int) -> Iterator[None]:
    """Show step, loss and validation of the run in `run_folder` until the block ends; nothing when output is not a
    terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task("starting", total=steps)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.5 if is_local(run_folder) else 10):
                latest = {f"{entry['split']}/{entry['name']}": entry for entry in read_metrics(run_folder)}
                if "train/loss" in latest:
                    shown = [
                        f"{name} {latest[name]['value']:.4g}" for name in ("train/loss", "val/psnr") if name in latest
                    ]
                    bar.update(line, completed=latest["train/loss"]["step"], description="  ".join(shown))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


class TrialBar:
    """One live line for a sweep, on a terminal only."""

    def __init__(self, num_trials: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._line = self._bar.add_task("trials", total=num_trials)
        self._is_shown = console.is_terminal
        if self._is_shown:
            self._bar.start()

    def show(self, num_ended: int, description: str) -> None:
        self._bar.update(self._line, completed=num_ended, description=description)

    def close(self) -> None:
        if self._is_shown:
            self._bar.stop()


def track(items: Iterable[T], *, total: int, description: str) -> Iterator[T]:
    """The items as they come, with a bar on a terminal, and nothing elsewhere."""
    console = Console(stderr=True)
    return iter(rich.progress.track(items, description, total=total, console=console) if console.is_terminal else items)
