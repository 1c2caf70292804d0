"""Many independent items over supervised Ray actors: bounded in flight, a time limit, attempts, quarantine.

A worker holds what is dear to load (a model) and does one item at a time, or a few whose steps overlap. An item may
raise, kill its process or hang: that costs the item an attempt, never the archive, nor those beside it. Ray's own tools
stop short of this: `ray.util.ActorPool` knows no attempts, and Ray Data retries a row that crashes its process for
ever, or drops the whole block around it.

The caller has connected Ray. Workers run in a folder of Ray's own, so every path that travels is absolute, and classes
travel by name, so they live in modules that a worker can import.
"""

from __future__ import annotations

import textwrap
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from library.errors import StillgrainError
from library.memory import KEEP_FREED

T = TypeVar("T")
Status = Literal["done", "failed", "quarantined"]

MAX_NODE_LOSSES = 5
"""Times an item may go down with its node, through no fault of its own, before such a loss costs it an attempt; and
workers in a row that are loading, before it counts as a death of theirs."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one item.

    item      as it was given
    status    `done`; `failed`: the worker raised; `quarantined`: the worker's process died or overran the time limit
    result    what the worker returned; None unless done
    error     why, in words; None if done
    attempts  how often the item was tried, not counting losses of a node
    seconds   duration of the last attempt
    """

    item: T
    status: Status
    result: Any
    error: str | None
    attempts: int
    seconds: float


def run_pool(
    worker_class: type,
    worker_args: tuple[Any, ...],
    items: Iterable[T],
    *,
    num_workers: int,
    num_cpus: float,
    num_gpus: float = 0.0,
    time_limit_s: float,
    max_attempts: int = 2,
    items_per_worker: int = 1,
) -> Generator[Outcome[T], None, None]:
    """Yield the outcome of every item in order of completion. Closing the generator kills its workers and no others.

    worker_class  its `__init__` loads; its `process(item)` does one item and returns something small that pickles. An
                  item can be processed again, and when the network splits even twice at once, so outputs must be
                  published atomically
    items         read lazily: no more than the workers have in hand are read and unfinished at any time
    num_workers   at most: fewer start for fewer items, or while the cluster has no room for more
    num_cpus, num_gpus  of one worker
    time_limit_s  for one call of `process`, what it waits for others in its worker included. Loading, and waiting for
                  the cluster to have room, are not limited
    max_attempts  for an item whose worker died, hung or raised; a `StillgrainError` is final at once
    items_per_worker  in one worker's hands at a time, each in a thread of its own: `process` must bear that. When a
                  worker dies of one of several, nobody knows of which: each is tried again alone, and only then it
                  costs an attempt

    Raises what `worker_class.__init__` raises, and StillgrainError if worker after worker dies while loading.
    """
    assert num_workers > 0
    assert max_attempts > 0
    assert items_per_worker > 0
    # A dead worker is replaced by a new actor, not restarted by Ray: with restarts a crash is reported as "temporarily
    # unavailable", like a lost network, and a crash while loading is repeated without end.
    options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_restarts": 0, "max_task_retries": 0}
    options["runtime_env"] = {"env_vars": KEEP_FREED}  # items come to threads that malloc has met before we could speak
    if items_per_worker > 1:
        options["max_concurrency"] = items_per_worker
    actor_class: Any = ray.remote(_Worker)

    def start_worker() -> tuple[_Unloaded, ray.ObjectRef]:
        actor = actor_class.options(**options).remote()
        return _Unloaded(actor, actor.node_id.remote(), _living_nodes()), actor.load.remote(worker_class, worker_args)

    pool = _Pool(iter(items), start_worker, num_workers, time_limit_s, max_attempts, items_per_worker)
    try:
        while True:
            pool.start_workers()
            yield from pool.take_outcomes()
            if not pool.has_work:
                return
            pool.step()
    finally:
        if ray.is_initialized():  # `ray.kill` would start a Ray of its own.
            pool.kill_workers()


@dataclass(frozen=True)
class _Reply:
    """The end of one attempt. `final` says that another would be of no use."""

    result: Any = None
    error: str | None = None
    final: bool = False
    seconds: float = 0.0


class _Worker:
    """Lives in the actor's process."""

    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def load(self, worker_class: type, worker_args: tuple[Any, ...]) -> None:
        """Not `__init__`, where Ray would bury the exception in the actor's death."""
        self.worker = worker_class(*worker_args)

    def process(self, item: Any) -> _Reply:
        """Errors travel as text, because not every exception survives pickling."""
        start = time.monotonic()
        try:
            result, error, final = self.worker.process(item), None, True
        except StillgrainError as raised:
            result, error, final = None, str(raised), True
        except Exception as raised:
            result, error, final = None, f"{type(raised).__name__}: {raised}", False
        return _Reply(result, error, final, time.monotonic() - start)


@dataclass
class _Job(Generic[T]):
    """An item and how often it was tried.

    is_suspect  a worker died that had it beside others
    """

    item: T
    attempts: int = 0
    node_losses: int = 0
    is_suspect: bool = False


@dataclass(frozen=True)
class _Unloaded:
    """A worker that is not ready yet.

    node_id  of where it is, which it tells before it loads
    nodes    that were alive when it was asked for
    """

    actor: Any
    node_id: ray.ObjectRef
    nodes: set[str]


@dataclass(eq=False)
class _Hand:
    """A loaded worker and what it is busy with.

    num_items   in its hands
    is_closed   it gets no further item beside these
    """

    actor: Any
    node_id: str
    num_items: int = 0
    is_closed: bool = False


@dataclass(frozen=True)
class _Attempt(Generic[T]):
    """A job that a worker is busy with."""

    job: _Job[T]
    hand: _Hand
    started: float


@dataclass
class _Pool(Generic[T]):
    """Every live worker is in `loading`, or has a reference in `running`, whose arrival ends an attempt."""

    source: Iterator[T]
    start_worker: Callable[[], tuple[_Unloaded, ray.ObjectRef]]
    num_workers: int
    time_limit_s: float
    max_attempts: int
    items_per_worker: int
    waiting: deque[_Job[T]] = field(default_factory=deque)
    loading: dict[ray.ObjectRef, _Unloaded] = field(default_factory=dict)
    running: dict[ray.ObjectRef, _Attempt[T]] = field(default_factory=dict)
    outcomes: list[Outcome[T]] = field(default_factory=list)
    deaths_while_loading: int = 0
    node_losses_while_loading: int = 0

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def take_outcomes(self) -> list[Outcome[T]]:
        taken, self.outcomes = self.outcomes, []
        return taken

    def start_workers(self) -> None:
        while len(self.loading) + len(self._hands) < self.num_workers:
            if len(self.waiting) <= len(self.loading) and not self._read_one():
                return  # Every item that is left has a worker on its way.
            unloaded, loaded = self.start_worker()
            self.loading[loaded] = unloaded

    def step(self) -> None:
        """Wait for an arrival or a deadline, and deal with all that came about."""
        deadlines = [attempt.started + self.time_limit_s for attempt in self.running.values()]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        refs = [*self.loading, *self.running]
        ray.wait(refs, num_returns=1, timeout=timeout)
        # Asked again, for all: what has finished is not late, however long the caller took over the last outcome.
        now = time.monotonic()
        arrived, pending = ray.wait(refs, num_returns=len(refs), timeout=0)
        late = {ref for ref in pending if ref in self.running and now - self.running[ref].started >= self.time_limit_s}
        for hand in {self.running[ref].hand for ref in late}:
            self._bury(hand, f"overran the time limit of {self.time_limit_s:g} s", late)
        for ref in arrived:
            if ref in self.loading:
                self._on_loaded(ref, self.loading.pop(ref))
            elif ref in self.running:  # or it went down with another of its worker's
                self._on_reply(ref)

    def kill_workers(self) -> None:
        for worker in [*self.loading.values(), *self._hands]:
            ray.kill(worker.actor)

    @property
    def _hands(self) -> set[_Hand]:
        return {attempt.hand for attempt in self.running.values()}

    def _read_one(self) -> bool:
        """Move the next item from the source to the queue. False when there is none."""
        self.waiting.extend(jobs := [_Job(item) for item in islice(self.source, 1)])
        return bool(jobs)

    def _assign(self, hand: _Hand) -> None:
        """Fill a worker's hands; one that nothing is left for goes."""
        while hand.num_items < self.items_per_worker and not hand.is_closed and (self.waiting or self._read_one()):
            if self.waiting[0].is_suspect:
                if hand.num_items:
                    break
                hand.is_closed = True
            job = self.waiting.popleft()
            hand.num_items += 1
            self.running[hand.actor.process.remote(job.item)] = _Attempt(job, hand, time.monotonic())
        if not hand.num_items:
            ray.kill(hand.actor)

    def _on_loaded(self, ref: ray.ObjectRef, worker: _Unloaded) -> None:
        try:
            ray.get(ref)
            node_id = ray.get(worker.node_id)
        except RayTaskError as error:
            ray.kill(worker.actor)
            raise error.cause from (None if isinstance(error.cause, StillgrainError) else error)
        except (RayActorError, OutOfMemoryError) as error:  # the latter of Ray's memory monitor
            ray.kill(worker.actor)
            if self.node_losses_while_loading < MAX_NODE_LOSSES and _went_with_its_node(worker, error):
                self.node_losses_while_loading += 1
                return
            self.deaths_while_loading += 1
            if self.deaths_while_loading >= self.max_attempts * self.num_workers:
                raise StillgrainError(
                    f"{self.deaths_while_loading} workers in a row died while loading: give each more memory, or see "
                    f"the worker's log in Ray's session folder. The last one: {_cause_of_death(error)}"
                ) from None
        else:
            self.deaths_while_loading = self.node_losses_while_loading = 0
            self._assign(_Hand(worker.actor, node_id))

    def _on_reply(self, ref: ray.ObjectRef) -> None:
        hand = self.running[ref].hand
        try:
            reply = ray.get(ref)
        except RayError as error:
            if isinstance(error, ActorUnavailableError) or hand.node_id not in _living_nodes():
                self._lose_node(hand, error)
            else:
                self._bury(hand, f"its worker died: {_cause_of_death(error)}", None)
            return
        job = self.running.pop(ref).job
        hand.num_items -= 1
        self._settle(job, reply, "done" if reply.error is None else "failed")
        if reply.final:
            hand.is_closed = False
            self._assign(hand)
        else:
            # Nobody expected this exception, so the process goes too: after some CUDA errors it would fail every item
            # it gets, and do so faster than its healthy neighbours do theirs.
            self.waiting.extend(attempt.job for attempt in self._take_all(hand).values())

    def _lose_node(self, hand: _Hand, error: RayError) -> None:
        for attempt in self._take_all(hand).values():
            if attempt.job.node_losses < MAX_NODE_LOSSES:
                attempt.job.node_losses += 1
                self.waiting.append(attempt.job)
            else:
                self._fail(attempt, f"its worker died: {_cause_of_death(error)}")

    def _bury(self, hand: _Hand, error: str, guilty: set[ray.ObjectRef] | None) -> None:
        """End a worker that one of its items is to blame for.

        guilty  those that may be; None for all
        """
        attempts = self._take_all(hand)
        for ref, attempt in attempts.items():
            if guilty is not None and ref not in guilty:
                self.waiting.append(attempt.job)
            elif len(attempts) > 1:
                attempt.job.is_suspect = True
                self.waiting.append(attempt.job)
            else:
                self._fail(attempt, error)

    def _take_all(self, hand: _Hand) -> dict[ray.ObjectRef, _Attempt[T]]:
        """Kill a worker, and what it had not finished; what it had, is settled."""
        ray.kill(hand.actor)
        refs = [ref for ref, attempt in self.running.items() if attempt.hand is hand]
        attempts = {ref: self.running.pop(ref) for ref in refs}
        for ref in ray.wait(refs, num_returns=len(refs), timeout=0)[0] if refs else ():
            try:
                reply = ray.get(ref)
            except RayError:
                continue
            self._settle(attempts.pop(ref).job, reply, "done" if reply.error is None else "failed")
        return attempts

    def _fail(self, attempt: _Attempt[T], error: str) -> None:
        self._settle(attempt.job, _Reply(error=error, seconds=time.monotonic() - attempt.started), "quarantined")

    def _settle(self, job: _Job[T], reply: _Reply, status: Status) -> None:
        job.attempts += 1
        if reply.final or job.attempts >= self.max_attempts:
            self.outcomes.append(Outcome(job.item, status, reply.result, reply.error, job.attempts, reply.seconds))
        else:
            self.waiting.append(job)


def _went_with_its_node(worker: _Unloaded, error: RayError) -> bool:
    if isinstance(error, ActorUnavailableError):
        return True
    try:
        return ray.get(worker.node_id, timeout=0) not in _living_nodes()
    except RayError:
        # It never ran, as on a node that was told to stop; nobody says on which.
        return not worker.nodes <= _living_nodes()


def _living_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _cause_of_death(error: RayError) -> str:
    # The indented lines of Ray's message are ids and addresses.
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    return textwrap.shorten(" ".join(lines), 400, placeholder=" ...")
