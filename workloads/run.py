"""From a YAML file to a finished workload: `workload: denoise` runs `workloads/denoise.py`. Defines nothing that
travels to a worker."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from library.config import Frozen, kinds, load, validate
from library.errors import ConfigError


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> Frozen:
    """The validated configuration of a YAML file with `key=value` words laid over it; starts nothing.

    A workload may have a `check` for what its config alone does not tell.

    raises  ConfigError naming the file, the key and the remedy
    """
    data = load(path, overrides)
    module = _module(data, str(path))
    config = validate(module.Config, data, str(path))
    if hasattr(module, "check"):
        module.check(config)
    return config


def run(config: Any) -> Any:
    """Do the work a configuration describes, and return the workload's result (see its `run`)."""
    return _module({"workload": config.workload}, "config").run(config)


def _module(data: Mapping[str, Any], source: str) -> ModuleType:
    known = ", ".join(kinds("workloads"))
    if "workload" not in data:
        raise ConfigError(f"{source}: workload: is required; known: {known}")
    name = data["workload"]
    if name not in kinds("workloads"):
        raise ConfigError(f"{source}: workload: unknown workload '{name}'; known: {known}")
    return importlib.import_module(f"workloads.{name}")
