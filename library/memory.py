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


def keep_freed_memory() -> None:
    """From now on this process grows to its largest step and stays there. Nothing happens without glibc."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 2**30)
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        # Arenas of threads are cut into heaps of 64 MiB, which go back to the system one by one.
        mallopt(_M_ARENA_MAX, 1)
