"""The whole state of a run in one folder: tensors in safetensors, the rest in JSON, nothing pickled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import nn

from library.errors import CheckpointError

_FORMAT = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"


@dataclass
class Progress:
    """Where a run stands; all of its state that is not a tensor. Everything else is a function of the config and the
    step."""

    step: int = 0
    """Updates done."""
    best_step: int | None = None
    best_value: float | None = None
    """Of the metric that decides which weights are published."""


def save_checkpoint(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write weights, optimizer and progress into an existing empty folder, which the caller then makes visible as a
    whole."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    path = Path(folder)
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path / _TENSORS)
    state = {"format": _FORMAT, "progress": asdict(progress)}
    state["sha256"] = _digest(state["progress"], (path / _TENSORS).read_bytes())
    (path / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def load_checkpoint(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a saved state back into a model and an optimizer of the same config. Returns where the run stood.

    raises  CheckpointError when files are missing, damaged, of another format, or of another model
    """
    path = Path(folder)
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        content = (path / _TENSORS).read_bytes()
        written_format, progress, digest = state["format"], state["progress"], state["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            path, f"is not a whole checkpoint ({error}); delete it to go on from the one before"
        ) from None
    if written_format != _FORMAT:
        raise CheckpointError(path, f"has format {written_format}, and this version reads format {_FORMAT}")
    if _digest(progress, content) != digest:
        raise CheckpointError(
            path, "is damaged (its hash is not the recorded one); delete the folder to go on from the one before"
        )
    tensors = load(content)
    try:
        model.load_state_dict(
            {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        )
    except RuntimeError as error:
        raise CheckpointError(path, f"belongs to another model: {error}") from None
    optimizer_state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            optimizer_state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": optimizer_state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**progress)


def _digest(progress: Any, tensors: bytes) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode() + tensors).hexdigest()
