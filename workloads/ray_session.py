"""A connection to Ray: the cluster this command runs on, or one started on this machine for as long as it takes; and
whether there is room on it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping

import ray
from ray.autoscaler import sdk as autoscaler

from library.errors import StillgrainError

_LOOK_EVERY_S = 2.0
# Nodes join within seconds of one that has just been lost, or of a cluster that has just been started.
_WHERE_NOTHING_GROWS_S = 30.0


class NoRoomError(StillgrainError):
    """A cluster that grows has not grown in time. Nothing is wrong with the work, and a queue may try it again."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the Ray that is there (a job's cluster, RAY_ADDRESS, `ray start`), or start one here for the block.

    Workers' prints stay in Ray's logs: results and errors come back through return values and exceptions.
    """
    if ray.is_initialized():
        yield
        return
    # The dashboard matters where Ray is started here: without it Ray Train cannot find out that a controller died, and
    # never frees its workers' resources (ray-project/ray#54305).
    ray.init(include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def wait_for_room(count: int, each: Mapping[str, float], within_s: float) -> None:
    """Until the cluster has nodes for `count` times `each` at once, asking its autoscaler for them.

    A Ray on this machine alone, or a cluster that nobody lets grow, is waited for no longer than a lost node takes to
    be back; what has no room then is the caller's to refuse, with its own arithmetic.

    within_s  how long nodes may take to come
    raises    NoRoomError when a cluster that grows did not within that time
    """
    if _fit(each) >= count:
        return
    grows = _grows()
    if not grows and len(nodes := _alive()) == 1 and nodes[0].get("CPU", 0) > 0:
        return
    asked = " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)
    limit = within_s if grows else min(within_s, _WHERE_NOTHING_GROWS_S)
    print(f"waiting for room for {count} x {asked}, up to {limit:g} s", file=sys.stderr, flush=True)
    deadline = time.monotonic() + limit
    try:
        if grows:
            # Nothing waits in Ray yet, so nothing else would make it start nodes.
            autoscaler.request_resources(bundles=[{name: amount for name, amount in each.items() if amount}] * count)
        while time.monotonic() < deadline:
            if _fit(each) >= count:
                return
            time.sleep(_LOOK_EVERY_S)
    finally:
        if grows:
            autoscaler.request_resources(bundles=[])
    if grows:
        raise NoRoomError(
            f"no room for {count} x {asked} within {limit:g} s: the cluster has room for {_fit(each)}; see `ray "
            "status` for why no nodes come, or give them longer: start_within_s"
        )


def _alive() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fit(each: Mapping[str, float]) -> int:
    needed = {name: amount for name, amount in each.items() if amount > 0}
    return sum(
        min((int((node.get(name, 0.0) + 1e-9) / amount) for name, amount in needed.items()), default=1)
        for node in _alive()
    )


def _grows() -> bool:
    """Whether an autoscaler started some node: it then bears the name of its type."""
    return any((node.get("Labels") or {}).get("ray.io/node-group") for node in ray.nodes() if node["Alive"])
