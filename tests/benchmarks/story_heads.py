"""Switch Ray's head off and on again under a queue at work, with and without its memory, and say how long it takes.

python -m tests.benchmarks.story_heads
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.cluster.head_story import LOST_AFTER_S, restart_story


def main() -> None:
    print(f"a job without a sign counts as lost after {LOST_AFTER_S:g} s")
    for memory in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            seconds = restart_story(Path(folder), memory=memory)
        print(f"{'with' if memory else 'without'} memory: {', '.join(f'{w} {s:.1f} s' for w, s in seconds.items())}")


if __name__ == "__main__":
    main()
