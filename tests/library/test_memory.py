from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from library.memory import KEEP_FREED

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory")

_FAULTS_OF_A_STEP = """
import resource
import torch
from library.memory import keep_freed_memory

if {keep}:
    keep_freed_memory()
for step in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(size) for size in (2**23, 2**20, 3 * 2**21)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_a_step(*, keep: bool) -> int:
    """Page faults of taking and freeing 60 MB once blocks have found their places."""
    script = _FAULTS_OF_A_STEP.format(keep=keep)
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@glibc
def test_memory_that_a_step_has_freed_is_there_for_the_next_one():
    kept = faults_of_a_step(keep=True)
    assert kept < 100
    assert kept <= faults_of_a_step(keep=False)


_FAULTS_IN_A_THREAD = """
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np

# As in a worker of Ray: threads that have arenas of their own, before anybody could say anything.
gate = threading.Event()
early = ThreadPoolExecutor(8)
waiting = [early.submit(lambda: (bytearray(70_000), gate.wait())) for _ in range(8)]

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(size, np.uint8) for size in (2**27, 3 * 2**25, 2**24)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as lane:
    found = [lane.submit(step).result() for _ in range(8)]
gate.set()
print(found[-1])
"""


def faults_in_a_thread(**variables: str) -> int:
    environment = {**os.environ, **variables}
    run = subprocess.run(
        [sys.executable, "-c", _FAULTS_IN_A_THREAD], capture_output=True, text=True, check=True, env=environment
    )
    return int(run.stdout)


@glibc
def test_blocks_larger_than_a_threads_heap_are_kept_by_a_process_that_was_told_before_it_began():
    assert faults_in_a_thread(**KEEP_FREED) < 100 < faults_in_a_thread()
