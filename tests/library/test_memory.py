from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory")
def test_memory_that_a_step_has_freed_is_there_for_the_next_one():
    kept = faults_of_a_step(keep=True)
    assert kept < 100
    assert kept <= faults_of_a_step(keep=False)
