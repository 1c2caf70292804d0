"""Whether a cluster has nodes for what a job asks for, with the arithmetic.

Ray 2.60 waits without end for what no node can ever give, and says so in a log only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.errors import QueueError

_UNKNOWN = {"CPU": math.inf, "GPU": math.inf}
_MOST = 1_000_000


@dataclass(frozen=True)
class Bundles:
    """What must be there at once for a job to begin: so many times the same, each on one node."""

    count: int
    each: Mapping[str, float]
    """{"CPU": 2, "GPU": 1}."""


@dataclass(frozen=True)
class Room:
    """Nodes that are there, or that may come."""

    nodes: tuple[tuple[Mapping[str, float], int], ...]
    """What a node has, and how many such there are."""
    grows: bool = False
    """Whether others may come, of which nothing is known."""

    def to_json(self) -> str:
        return json.dumps([[[dict(resources), count] for resources, count in self.nodes], self.grows])

    @classmethod
    def from_json(cls, text: str) -> Room:
        nodes, grows = json.loads(text)
        return cls(tuple((resources, count) for resources, count in nodes), grows)


def shortage(bundles: Bundles | None, room: Room) -> str:
    """Why a job can never begin; nothing where it can, or where that is not known."""
    if bundles is None or room.grows:
        return ""
    fit = sum(count * _fit(bundles.each, resources) for resources, count in room.nodes)
    if fit >= bundles.count:
        return ""
    parts = []
    for resource, each in bundles.each.items():
        largest = max((resources.get(resource, 0.0) for resources, _ in room.nodes), default=0.0)
        if each > largest:
            parts.append(
                f"needs {bundles.count * each:g} {resource} in bundles of {each:g}, and the largest node has "
                f"{largest:g}"
            )
    if parts:
        return "; ".join(parts)
    asked = ", ".join(f"{each:g} {resource}" for resource, each in bundles.each.items())
    there = sum(count for _, count in room.nodes)
    return f"needs {bundles.count} bundles of {asked}, and {there} nodes have room for {fit} of them"


def room_of_cluster_file(file: str | Path) -> Room:
    """What `ray up` may start by a file: every type with its most nodes, the head among them.

    Ray asks the cloud about each type, and lays `resources` over the answer: of CPUs and GPUs that are not named there
    may be any number. A type without `resources` may have whatever is asked for.

    raises  QueueError for what is no cluster file
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        types = content["available_node_types"]
        nodes = []
        for name, kind in types.items():
            most = kind.get("max_workers", content.get("max_workers", 0)) + (name == content.get("head_node_type"))
            named = {resource: float(amount) for resource, amount in (kind.get("resources") or {}).items()}
            nodes.append((_UNKNOWN | named, int(most)))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise QueueError(
            f"{file}: cannot be read as a cluster's file ({type(error).__name__}: {error}): give the one of `ray up`"
        ) from None
    return Room(tuple((resources, most) for resources, most in nodes if most))


def _fit(each: Mapping[str, float], resources: Mapping[str, float]) -> int:
    # A hair more, since shares of a GPU are no exact numbers.
    fits = [(resources.get(name, 0.0) + 1e-9) / amount for name, amount in each.items() if amount > 0]
    return int(min([*fits, _MOST]))
