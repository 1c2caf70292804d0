"""Functions that tests run on Ray's training workers, which import them by name."""

from __future__ import annotations

from typing import Any

from library.errors import ConfigError
from library.training.world import World


def fail_as_a_user_can_mend(job: dict[str, Any], world: World) -> None:
    """Leave a mark for each attempt, and raise what no further attempt can change."""
    with open(job["attempts"], "a", encoding="utf-8") as file:
        file.write(f"{world.rank}\n")
    raise ConfigError("optim.lr is too high: lower it")


def fail_as_code_does(job: dict[str, Any], world: World) -> None:
    """Leave a mark for each attempt, and fail like a defect or a broken disk."""
    with open(job["attempts"], "a", encoding="utf-8") as file:
        file.write(f"{world.rank}\n")
    raise RuntimeError("out of luck")
