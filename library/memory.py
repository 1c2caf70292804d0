"""Keep what a step or a tile frees for the next one, instead of giving it back and faulting it in again.

A step frees and allocates the same few hundred megabytes. glibc returns large blocks to the system as they are freed;
each page of them then faults when next written, some 1,500 times in a step of the demo's training, which costs
a few percent of it, and a third of the time that a codec's transform takes.
"""

from __future__ import annotations

import ctypes
import platform

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE = 2**30

KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_THRESHOLD_": str(_LARGE),
    "MALLOC_ARENA_MAX": "1",
}
"""`keep_freed_memory` as environment variables, for a process that is yet to be started. It is the only way where
threads have begun before us, as in Ray's workers: theirs are arenas of 64 MiB, and larger blocks go back at once.

Source: The GNU C Library manual, "Memory Allocation Tunables"."""


def keep_freed_memory() -> None:
    """From now on this process grows to its largest step and stays there. Nothing happens without glibc.

    For the start of a process: threads that have allocated before keep the arenas they have.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, -1)  # never; any number of bytes is less than an image may free at once
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        # Arenas of threads are cut into heaps of 64 MiB, which go back to the system one by one.
        mallopt(_M_ARENA_MAX, 1)
