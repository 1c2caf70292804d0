"""A run's tags and notes, which are kept in its run.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import RootModel

from library.config import load, to_yaml
from library.errors import ConfigError
from library.files.atomic import whole_file
from workloads.runs.find import find_run
from workloads.runs.folder import CONFIG
from workloads.runs.read import Run, read_run


def tag(storage: str | Path, name: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Run:
    """Add and take away a run's tags, which are kept in its run.yaml. Returns the run as it then is.

    raises  ConfigError for an unknown or broken run, or a tag that is no single word
    """
    run = find_run(storage, name)
    for word in (*add, *remove):
        if not word or any(character.isspace() for character in word):
            raise ConfigError(f"tag '{word}' is not one word: leave out the spaces")
    tags = [word for word in dict.fromkeys((*run.tags, *add)) if word not in remove]
    return _rewritten(run, tags=tags)


def note(storage: str | Path, name: str, text: str) -> Run:
    """Write a run's notes, in place of those before, into its run.yaml. Returns the run as it then is.

    raises  ConfigError for an unknown or broken run
    """
    return _rewritten(find_run(storage, name), notes=text)


def _rewritten(run: Run, **changes: Any) -> Run:
    if run.status == "broken":
        raise ConfigError(f"run '{run.name}' is broken ({run.reason}): put that right first")
    data = RootModel[dict[str, Any]]({**load(run.folder / CONFIG), **changes})
    with whole_file(run.folder / CONFIG) as temporary:
        temporary.write_text(to_yaml(data), encoding="utf-8")
    return read_run(run.folder)
