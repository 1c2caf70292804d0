"""The whole state of a run in one folder: tensors in safetensors, the rest in JSON, nothing pickled.

`state.json` holds the hash of the tensors and is written after them, so a checkpoint is whole when it has one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import nn
from upath import UPath

from library.errors import CheckpointError
from library.files.places import place

_FORMAT = 2
STATE_FILE = "state.json"
"""Vouches for the tensors: a checkpoint is whole when it is there."""
_TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class BestValue:
    """The best that a metric has been, and when."""

    step: int
    value: float


@dataclass
class Progress:
    """Where a run stands; all of its state that is not a tensor. Everything else is a function of the config and the
    step."""

    step: int = 0
    """Updates done, of all stages; a skipped step counts."""
    best: dict[str, BestValue] = field(default_factory=dict)
    """Of every validation metric that has a better direction."""
    lr_scale: float = 1.0
    """What the plateau schedule has made of the learning rate so far."""
    patience_start: int = 0
    """Step of the last improvement of any metric, or of the last decay: from here the plateau schedule counts."""
    skipped_steps: int = 0
    """Steps whose loss or gradient was no number, and which changed no weight."""
    stopped: str | None = None
    """Why the run ended before its last step."""


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    average: nn.Module | None = None,
) -> None:
    """Write weights, their moving average, optimizer and progress into an existing empty folder, which the caller then
    makes visible as a whole."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    path = Path(folder)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path / _TENSORS)
    state = {"format": _FORMAT, "progress": asdict(progress)}
    state["sha256"] = _digest(state["progress"], (path / _TENSORS).read_bytes())
    (path / STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def load_checkpoint(
    folder: str | Path | UPath,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> Progress:
    """Put a saved state back into a model, an optimizer and a moving average of the same config. Returns where the run
    stood.

    raises  CheckpointError when files are missing, damaged, of another format, or of another model
    """
    path = place(folder)
    state = _read_state(path)
    try:
        content = (path / _TENSORS).read_bytes()
    except OSError as error:
        raise CheckpointError(
            path, f"is not a whole checkpoint ({error}); delete it to go on from the one before"
        ) from None
    if _digest(state["progress"], content) != state["sha256"]:
        raise CheckpointError(
            path, "is damaged (its hash is not the recorded one); delete the folder to go on from the one before"
        )
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in load(content).items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    try:
        model.load_state_dict(parts["model"])
        if average is not None:
            average.load_state_dict(parts["average"])
    except RuntimeError as error:
        raise CheckpointError(path, f"belongs to another model: {error}") from None
    optimizer_state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        optimizer_state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": optimizer_state, "param_groups": optimizer.state_dict()["param_groups"]})
    return _progress(path, state)


def read_progress(folder: str | Path | UPath) -> Progress:
    """Where the run stood at a checkpoint; reads no tensors, so damage to those is not found.

    raises  CheckpointError when there is no state, or one that is cut short or of another format
    """
    path = place(folder)
    return _progress(path, _read_state(path))


def checkpoints(run_folder: str | Path | UPath) -> list[UPath]:
    """The whole checkpoints of a run, by step."""
    folder = place(run_folder) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(
        (c for c in folder.iterdir() if c.name.startswith("step-") and (c / STATE_FILE).exists()), key=lambda c: c.name
    )


def _read_state(path: UPath) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        written_format, _, _ = state["format"], state["progress"], state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            path, f"is not a whole checkpoint ({error}); delete it to go on from the one before"
        ) from None
    if written_format != _FORMAT:
        raise CheckpointError(path, f"has format {written_format}, and this version reads format {_FORMAT}")
    return state


def _progress(path: UPath, state: dict[str, Any]) -> Progress:
    try:
        best = {name: BestValue(**value) for name, value in state["progress"]["best"].items()}
        return Progress(**{**state["progress"], "best": best})
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"is damaged ({error}); delete it to go on from the one before") from None


def _digest(progress: Any, tensors: bytes) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode() + tensors).hexdigest()
