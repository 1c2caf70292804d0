"""What lies in a run's folder: its files by name, how large they are, when they changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from upath import UPath

CONFIG, METRICS, STATE, TENSORS = "run.yaml", "metrics.jsonl", "state.json", "tensors.safetensors"


def is_run(folder: UPath) -> bool:
    """A folder is a run if it holds a run.yaml."""
    return (folder / CONFIG).exists()


def checkpoint_folders(run_folder: UPath) -> list[UPath]:
    """All of them, the oldest first; also those that a kill left without a state."""
    below = run_folder / "checkpoints"
    return (
        sorted((c for c in below.iterdir() if c.name.startswith("step-")), key=lambda c: c.name)
        if below.is_dir()
        else []
    )


def files_below(folder: UPath) -> Iterator[UPath]:
    """All files; links are not followed, since what lies behind them is another's."""
    if not folder.is_dir():
        return
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            yield from files_below(child)
        else:
            yield child


def num_bytes(path: UPath) -> int:
    """Of a file, or of all files below a folder."""
    files = files_below(path) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.exists())


def modified(path: UPath) -> datetime | None:
    """When a file last changed; None where its store does not tell, as S3 does not of folders, or where it is gone."""
    try:
        seconds = path.stat().st_mtime
    except FileNotFoundError:
        return None
    if seconds != 0:
        return datetime.fromtimestamp(seconds, UTC)
    try:
        # UPath says 0 where the time is not among the facts that a store gives with a file; some have it by this call.
        return path.fs.modified(path.path).astimezone(UTC)
    except (NotImplementedError, OSError):
        return None
