"""Where a run's numbers and states go: `metrics.jsonl`, loggers, and checkpoints that appear whole or not at all.

The run folder may be a URI. Everything a restart needs is in it, so workers share nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from upath import UPath

from library.files.atomic import whole_file, whole_folder
from library.files.places import is_local, place, read_text, remove_folder
from library.files.writer import Writer
from library.training.checkpoint import STATE_FILE, checkpoints
from library.training.loggers import Logger

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Records a run in its folder. Only the worker that leads calls `log`; all workers call `start` and `commit`.

    run_folder  where everything goes; absolute, or a URI
    leads       whether this worker writes
    loggers     get every value too
    """

    def __init__(self, run_folder: str | Path | UPath, *, leads: bool = True, loggers: Sequence[Logger] = ()) -> None:
        self.run_folder = place(run_folder)
        self.leads = leads
        self._loggers = loggers
        self._writer = Writer(self.run_folder, "run")
        self._unsent: list[str] = []
        """Lines of `metrics.jsonl` for an object store, which cannot append: sent whole at each commit."""

    def latest_checkpoint(self) -> UPath | None:
        """The newest committed checkpoint's folder."""
        return next(reversed(checkpoints(self.run_folder)), None)

    def start(self, step: int) -> None:
        """Begin at `step` updates: forget what was recorded later than that, which will be recorded again.

        From now on this process is the one that writes; another that still does finds out at its next line, and stops.
        """
        if not self.leads:
            return
        self._writer.claim()
        kept = [json.dumps(line) + "\n" for line in read_metrics(self.run_folder) if line["step"] <= step]
        with whole_file(self.run_folder / METRICS_FILE) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._unsent = kept
        for logger in self._loggers:
            logger.start(step)

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Append one line a value to `metrics.jsonl`, and tell the loggers.

        raises  StillgrainError when another process has started to write this run
        """
        self._writer.check()
        lines = [
            json.dumps({"step": step, "split": split, "name": name, "value": float(value)}) + "\n"
            for name, value in metrics.items()
        ]
        file = self.run_folder / METRICS_FILE
        if is_local(file):
            with open(file, "a", encoding="utf-8") as target:
                target.writelines(lines)
                target.flush()
                os.fsync(target.fileno())
        else:
            self._unsent += lines
        for logger in self._loggers:
            logger.log(step, split, metrics)

    def commit(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        num_last: int = 2,
        keep: Collection[int] = (),
    ) -> None:
        """Make the state after `step` updates the one that a restart goes on from.

        write     writes the checkpoint's files into the folder it is given, the one that vouches for the others last
        num_last  how many of the newest checkpoints stay, this one among them
        keep      steps whose checkpoints stay too
        """
        if not self.leads:
            return
        self._writer.check()
        file = self.run_folder / METRICS_FILE
        if not is_local(file):
            with whole_file(file) as temporary:
                temporary.write_text("".join(self._unsent), encoding="utf-8")
        with whole_folder(self.run_folder / "checkpoints" / f"step-{step:08d}", last=STATE_FILE) as temporary:
            write(temporary)
        for old in checkpoints(self.run_folder)[:-num_last]:
            if int(old.name.removeprefix("step-")) not in keep:
                remove_folder(old)
        for logger in self._loggers:
            logger.flush()

    def close(self) -> None:
        """Flush what is buffered."""
        for logger in self._loggers:
            logger.close()


def read_metrics(run_folder: str | Path | UPath) -> list[dict]:
    """The lines of `metrics.jsonl`: step, split, name, value. A last line cut short by a kill is left out."""
    try:
        text = read_text(place(run_folder) / METRICS_FILE)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
