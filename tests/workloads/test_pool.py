from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import cloudpickle
from ray.util.state import list_actors

from library.errors import BundleError, ImageFileError, StillgrainError
from workloads.pool import Outcome, run_pool

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(autouse=True, scope="module")
def _workers_without_a_module() -> Iterator[None]:
    """Ray's processes cannot import a test module, so its classes travel whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def hang() -> None:
    threading.Event().wait()


class Doubler:
    """Doubles numbers, obeys the other words, and keeps count of the items it was given."""

    def process(self, item: Any) -> Any:
        match item:
            case "missing":
                raise ImageFileError("a.tif", "no such file: check the list")
            case "bug":
                raise ValueError("bad value")
            case "crash":
                os._exit(3)
            case "hang":
                hang()
        return 2 * item


def run(items: Any, worker_class: type = Doubler, *worker_args: Any, **options: Any) -> Generator[Outcome, None, None]:
    options = {"num_workers": 2, "num_cpus": 1, "time_limit_s": 60.0} | options
    return run_pool(worker_class, worker_args, items, **options)


def our_actors() -> list[Any]:
    address = ray.get_runtime_context().gcs_address  # there may be other Rays on this machine
    return list_actors(address, filters=[("class_name", "=", "_Worker"), ("state", "!=", "DEAD")])


class Faults:
    """Takes and frees 240 MB in a thread that Ray has started, and counts the pages that had to be fetched for it."""

    def process(self, item: int) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        blocks = [np.ones(size, np.uint8) for size in (2**27, 3 * 2**25, 2**24)]
        del blocks
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_one_bad_item_of_each_kind_leaves_the_others_untouched():
    items = [0, 1, "missing", 2, "bug", 3, "crash", 4, "hang", 5, 6, 7]

    outcomes = {outcome.item: outcome for outcome in run(items, time_limit_s=1.5)}

    assert set(outcomes) == set(items)
    assert {n: (outcomes[n].status, outcomes[n].result, outcomes[n].error, outcomes[n].attempts) for n in range(8)} == {
        n: ("done", 2 * n, None, 1) for n in range(8)
    }
    bad = {word: outcomes[word] for word in ("missing", "bug", "crash", "hang")}
    assert {word: (o.status, o.attempts, o.result) for word, o in bad.items()} == {
        "missing": ("failed", 1, None),
        "bug": ("failed", 2, None),
        "crash": ("quarantined", 2, None),
        "hang": ("quarantined", 2, None),
    }
    assert bad["missing"].error == "a.tif: no such file: check the list"
    assert bad["bug"].error == "ValueError: bad value"
    assert bad["crash"].error is not None
    assert "died" in bad["crash"].error
    assert bad["hang"].error == "overran the time limit of 1.5 s"
    assert 1.5 <= bad["hang"].seconds < 10


def test_a_process_that_one_item_spoilt_is_not_given_another():
    """A CUDA error can outlive its call: such a worker would fail the rest of the archive, and quickly."""

    class Spoilt:
        ok = True

        def process(self, item: Any) -> Any:
            self.ok = self.ok and item != "bug"
            if not self.ok:
                raise RuntimeError("an illegal memory access was encountered")
            return item

    outcomes = {o.item: o for o in run(["bug", 1, 2, 3], Spoilt, num_workers=1)}
    assert {item: (o.status, o.attempts) for item, o in outcomes.items()} == {
        "bug": ("failed", 2),
        1: ("done", 1),
        2: ("done", 1),
        3: ("done", 1),
    }


def test_items_are_read_no_further_ahead_than_the_workers_need():
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    for items_per_worker in (1, 2):
        read = 0
        outcomes = run(endless(), items_per_worker=items_per_worker)
        for num_yielded in range(1, 30):
            next(outcomes)
            # In the workers' hands; and of those that finished at once, all but the first are still to be yielded.
            assert read <= num_yielded + 4 * items_per_worker - 1
        outcomes.close()


def test_no_more_workers_start_than_there_are_items():
    class Names:
        def process(self, item: int) -> str:
            return ray.get_runtime_context().get_actor_id() or ""

    assert list(run([])) == []
    assert len({outcome.result for outcome in run([1], Names, num_workers=4)}) == 1
    assert our_actors() == []


def test_a_quick_item_does_not_wait_for_a_slow_one_before_it(tmp_path: Path):
    os.mkfifo(tmp_path / "gate")

    class Gated:
        def process(self, item: str) -> str:
            return (tmp_path / "gate").read_text() if item == "slow" else item

    outcomes = run(["slow", "quick"], Gated)
    assert next(outcomes).item == "quick"
    (tmp_path / "gate").write_text("open")
    assert next(outcomes).result == "open"


class Victim:
    """Holds the item `victim` until it is killed, the first time; writes to a pipe whom to kill."""

    def __init__(self, pipe: Path, whom: Callable[[], int]) -> None:
        self.pipe, self.whom = pipe, whom

    def process(self, item: Any) -> Any:
        if item == "victim" and self.pipe.exists():
            self.pipe.write_text(str(self.whom()))
            hang()
        return item


def when_named(pipe: Path, act: Callable[[int], object]) -> threading.Thread:
    """Hands `act` the process that the victim names, while the test waits for outcomes."""
    os.mkfifo(pipe)

    def read_and_act() -> None:
        pid = int(pipe.read_text())
        pipe.unlink()
        act(pid)

    thread = threading.Thread(target=read_and_act, daemon=True)
    thread.start()
    return thread


def test_a_worker_killed_from_outside_costs_only_its_current_item_an_attempt(tmp_path: Path):
    killer = when_named(tmp_path / "pipe", lambda pid: os.kill(pid, signal.SIGKILL))

    outcomes = {o.item: o for o in run([1, "victim", 2, 3, 4], Victim, tmp_path / "pipe", os.getpid)}

    killer.join()
    assert {o.status for o in outcomes.values()} == {"done"}
    assert {item: o.attempts for item, o in outcomes.items()} == {1: 1, "victim": 2, 2: 1, 3: 1, 4: 1}


class VictimWhileLoading(Victim):
    def __init__(self, pipe: Path, whom: Callable[[], int]) -> None:
        super().__init__(pipe, whom)
        super().process("victim")


def start_node(address: str, **env: str) -> subprocess.Popen[bytes]:
    """A node with two (logical) GPUs, which no other has."""
    ray_command = str(Path(sys.executable).with_name("ray"))
    start = [ray_command, "start", f"--address={address}", "--num-cpus=0", "--num-gpus=2", "--block"]
    return subprocess.Popen(start, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_node_that_goes_down_costs_its_item_no_attempt_and_is_no_death_while_loading(
    tmp_path: Path, ray_cluster: str
):
    """The node of two pools is told to stop, as a spot instance is, and another joins later."""
    nodes, loads = [start_node(ray_cluster)], threading.Event()

    def replace_node(raylet: int) -> None:
        loads.wait()
        os.kill(raylet, signal.SIGTERM)
        nodes[0].kill()  # What is left of the node: the command that started it.
        nodes.append(start_node(ray_cluster))

    def outcomes(worker_class: type, pipe: str) -> list[Outcome]:
        options = {"num_workers": 1, "num_cpus": 0, "num_gpus": 1, "max_attempts": 1}
        return list(run(["victim"], worker_class, tmp_path / pipe, os.getppid, **options))

    when_named(tmp_path / "loading", lambda raylet: loads.set())
    killer = when_named(tmp_path / "processing", replace_node)
    try:
        with ThreadPoolExecutor(2) as pools:
            ended = list(pools.map(outcomes, [VictimWhileLoading, Victim], ["loading", "processing"]))
        killer.join()
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
    assert [[(o.status, o.attempts) for o in of_pool] for of_pool in ended] == [[("done", 1)]] * 2
    assert len(nodes) == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_for_its_memory_while_loading_is_replaced_but_not_for_ever(ray_cluster: str):
    """Ray's memory monitor says so with an error that is no RayActorError."""

    class Loads:
        def __init__(self) -> None:
            hang()

    node = start_node(ray_cluster, RAY_memory_usage_threshold="0.01", RAY_memory_monitor_refresh_ms="100")
    try:
        with pytest.raises(StillgrainError, match=r"2 workers in a row died while loading: .*low on memory"):
            list(run([1], Loads, num_workers=1, num_cpus=0, num_gpus=1))
    finally:
        node.terminate()
        node.wait()


class Meets:
    """Its items wait for each other, in pairs."""

    def __init__(self) -> None:
        self.meeting = threading.Barrier(2)

    def process(self, item: int) -> int:
        self.meeting.wait(60)
        return item


def test_a_worker_with_several_items_in_hand_does_them_side_by_side():
    outcomes = list(run(range(6), Meets, num_workers=1, items_per_worker=2))
    assert {(o.item, o.status, o.attempts) for o in outcomes} == {(n, "done", 1) for n in range(6)}


def test_items_beside_one_that_takes_their_worker_down_lose_nothing():
    """Whichever of them it was, each is tried again by itself, so that only the guilty one is found guilty."""
    items = [0, "crash", 1, "hang", 2, 3, "bug", 4]
    outcomes = {o.item: o for o in run(items, num_workers=1, items_per_worker=3, time_limit_s=1.5)}
    assert {n: (outcomes[n].status, outcomes[n].attempts) for n in range(5)} == dict.fromkeys(range(5), ("done", 1))
    assert {word: (outcomes[word].status, outcomes[word].attempts) for word in ("crash", "hang", "bug")} == {
        "crash": ("quarantined", 2),
        "hang": ("quarantined", 2),
        "bug": ("failed", 2),
    }


def test_what_loading_raises_comes_out_as_it_was_raised():
    class BadBundle:
        def __init__(self, path: str) -> None:
            raise BundleError(path, "its golden tiles are not reproduced: train it again")

    class BadCode:
        def __init__(self) -> None:
            raise KeyError("weights")

    with pytest.raises(BundleError) as bundle_error:
        list(run([1, 2, 3], BadBundle, "a.bundle"))
    assert type(bundle_error.value) is BundleError
    assert bundle_error.value.path == "a.bundle"
    assert bundle_error.value.__cause__ is None
    with pytest.raises(KeyError, match="weights") as key_error:
        list(run([1, 2, 3], BadCode))
    assert "test_pool.py" in str(key_error.value.__cause__)  # the worker's own traceback
    assert our_actors() == []


def test_a_worker_that_always_dies_while_loading_is_not_started_for_ever():
    class Crashes:
        def __init__(self) -> None:
            os._exit(3)

    with pytest.raises(StillgrainError, match="4 workers in a row died while loading"):
        list(run([1, 2, 3], Crashes))
    assert our_actors() == []


def test_closing_the_generator_leaves_no_worker_and_harms_no_other_actor():
    other_class: Any = ray.remote(Doubler)
    bystander = other_class.options(num_cpus=0).remote()
    outcomes = run(iter([1, "hang", 2, 3]))
    next(outcomes)
    assert our_actors() != []

    outcomes.close()

    assert our_actors() == []
    assert ray.get(bystander.process.remote(21)) == 42
    ray.kill(bystander)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory")
def test_what_one_item_has_freed_is_there_for_the_next():
    """Else a network on large tiles spends half of its time on pages: threads keep blocks of less than 64 MiB only."""
    faults = [outcome.result for outcome in run(range(6), Faults, num_workers=1, items_per_worker=2)]
    assert min(faults) < 100, faults
