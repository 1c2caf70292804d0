"""Where the steps of a worker's files run: one thread for each step, so that the network waits for no disk.

While the network has one raw, the next is decoded and the one before is written. Decoders, the network, checksums and
the disk all work outside of Python's lock. No pixel leaves the worker: what travels are names and digests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

T = TypeVar("T")
Step = Literal["read", "compute", "write"]


class Lanes:
    """The three threads of one worker. Each takes files in the order in which they come to it.

    A file that several threads of the caller run through here at once holds its place in `room` from when it is
    decoded until it is written. How many files are in here, and so how long the queues grow, is the caller's choice.

    room_bytes  that the pictures of these files may take together; one that needs more goes through alone
    """

    def __init__(self, room_bytes: float) -> None:
        self._threads: dict[Step, ThreadPoolExecutor] = {
            step: ThreadPoolExecutor(1, thread_name_prefix=step) for step in ("read", "compute", "write")
        }
        self._room_bytes = room_bytes
        self._taken = 0
        self._changed = threading.Condition()

    def run(self, step: Step, task: Callable[[], T]) -> T:
        """The result of a task, in its step's thread; what it raises is raised here."""
        return self._threads[step].submit(task).result()

    def wait_for_room(self, num_bytes: int) -> None:
        """Take so much of the room, when that is free. To be called in the lane that reads, which then reads nothing
        further: what waits in memory is one decoded raw."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + num_bytes <= self._room_bytes)
            self._taken += num_bytes

    def leave_room(self, num_bytes: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._taken -= num_bytes
            self._changed.notify_all()


def one_step_after_another(step: Step, task: Callable[[], T]) -> T:
    """`Lanes.run` for who has but one thread."""
    return task()
