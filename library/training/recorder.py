"""Where a run's numbers and states go: `metrics.jsonl`, TensorBoard, and checkpoint folders that appear whole or not at
all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from library.files.atomic import whole_file, whole_folder

METRICS_FILE = "metrics.jsonl"
_CHECKPOINTS_KEPT = 2


class Recorder:
    """Records a run in its folder. Only the worker that leads calls `log`; all workers call `commit`.

    run_folder  where everything goes; absolute
    leads       whether this worker writes
    """

    def __init__(self, run_folder: str | Path, *, leads: bool = True) -> None:
        self.run_folder = Path(run_folder)
        self.leads = leads
        self._tensorboard: SummaryWriter | None = None

    def latest_checkpoint(self) -> Path | None:
        """The newest committed checkpoint's folder."""
        return max((self.run_folder / "checkpoints").glob("step-*"), default=None)

    def start(self, step: int) -> None:
        """Begin at `step` updates: forget what was recorded later than that, which will be recorded again."""
        if not self.leads:
            return
        self.run_folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.run_folder) if line["step"] <= step]
        with whole_file(self.run_folder / METRICS_FILE) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        self._tensorboard = SummaryWriter(self.run_folder / "tensorboard", purge_step=step + 1)

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Append one line a value to `metrics.jsonl` and to TensorBoard."""
        with open(self.run_folder / METRICS_FILE, "a", encoding="utf-8") as file:
            for name, value in metrics.items():
                file.write(json.dumps({"step": step, "split": split, "name": name, "value": float(value)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        assert self._tensorboard is not None, "start() comes first"
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def commit(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        """Make the state after `step` updates the one that a restart goes on from.

        metrics  the latest values, plain floats, with their split (`val/psnr`)
        write    writes the checkpoint's files into the folder it is given
        """
        folder = self.run_folder / "checkpoints"
        with whole_folder(folder / f"step-{step:08d}") as temporary:
            write(temporary)
        for old in sorted(folder.glob("step-*"))[:-_CHECKPOINTS_KEPT]:
            shutil.rmtree(old)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(run_folder: str | Path) -> list[dict]:
    """The lines of `metrics.jsonl`: step, split, name, value. A last line cut short by a kill is left out."""
    try:
        text = (Path(run_folder) / METRICS_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
