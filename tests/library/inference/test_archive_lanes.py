from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from library.inference.archive_lanes import Lanes


def test_while_the_network_has_one_file_the_next_is_read_and_the_one_before_written() -> None:
    """Three steps of three files meet: none of them could go on if one waited for another to end."""
    lanes, meeting = Lanes(1e9), threading.Barrier(3)
    with ThreadPoolExecutor(3) as callers:
        steps = ("write", "compute", "read")
        met = [callers.submit(lanes.run, step, lambda: meeting.wait(30)) for step in steps]
        assert sorted(future.result() for future in met) == [0, 1, 2]


def test_a_step_takes_one_file_at_a_time_in_the_order_of_their_coming() -> None:
    lanes, gate, seen = Lanes(1e9), threading.Event(), list[int]()
    inside: list[int] = []

    def task(number: int) -> None:
        inside.append(number)
        assert gate.wait(30)
        assert inside == [number]
        seen.append(number)
        inside.remove(number)

    with ThreadPoolExecutor(4) as callers:
        first = callers.submit(lanes.run, "compute", lambda: task(0))
        while not inside:
            pass
        gate.set()
        for number in range(1, 4):
            callers.submit(lanes.run, "compute", lambda number=number: task(number)).result()
        first.result()
    assert seen == [0, 1, 2, 3]


def test_a_picture_waits_for_room_and_one_too_large_for_it_goes_through_alone() -> None:
    lanes, order = Lanes(100), list[str]()
    lanes.wait_for_room(60)

    def enter(name: str, num_bytes: int) -> None:
        lanes.wait_for_room(num_bytes)
        order.append(name)

    beside = threading.Thread(target=enter, args=("fits", 40))
    beside.start()
    beside.join(30)
    assert order == ["fits"]
    large = threading.Thread(target=enter, args=("large", 500))
    large.start()
    lanes.leave_room(60)
    large.join(0.05)
    assert order == ["fits"]
    lanes.leave_room(40)
    large.join(30)
    assert order == ["fits", "large"]


def test_what_a_step_raises_is_raised_where_its_file_is_and_harms_no_other() -> None:
    lanes = Lanes(1e9)

    def fail() -> None:
        raise ValueError("of this file")

    with pytest.raises(ValueError, match="of this file"):
        lanes.run("compute", fail)
    assert lanes.run("compute", lambda: 7) == 7
