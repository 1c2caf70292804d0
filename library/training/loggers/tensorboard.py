"""TensorBoard's event files: `pip install 'stillgrain[tensorboard]'`, then `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upath import UPath

from library.config import Location
from library.errors import ConfigError
from library.files.places import place
from library.training.loggers import LoggerConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Config(LoggerConfig):
    kind: Literal["tensorboard"] = "tensorboard"
    folder: Location | None = None
    """Log directory in which each run has a folder of its own name; left out, `tensorboard/` in the run's folder."""

    def build(self, run_folder: Path | UPath, run_name: str, config: Mapping[str, Any]) -> TensorboardLogger:
        return TensorboardLogger(run_folder / "tensorboard" if self.folder is None else place(self.folder) / run_name)


class TensorboardLogger:
    """See `Logger`. TensorBoard itself hides what a restart logs again: the new file says from which step on.

    folder  of the event files; a URI needs what TensorBoard needs for it
    raises  ConfigError when TensorBoard is not installed
    """

    def __init__(self, folder: Path | UPath) -> None:
        self.folder = folder
        self._writer_class = _writer_class()
        self._writer: SummaryWriter | None = None

    def start(self, step: int) -> None:
        self._writer = self._writer_class(str(self.folder), purge_step=step + 1)

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        assert self._writer is not None, "start() comes first"
        for name, value in metrics.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        assert self._writer is not None, "start() comes first"
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer_class() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "loggers.tensorboard: TensorBoard is not installed here: pip install 'stillgrain[tensorboard]', or leave "
            "out loggers.tensorboard"
        ) from None
    return SummaryWriter
