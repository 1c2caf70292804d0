"""The queue goes on when its Ray is switched off and on again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.head_story import restart_story


@pytest.mark.slow
def test_the_queue_goes_on_when_the_head_comes_back_and_knows_nothing(tmp_path: Path) -> None:
    """With its memory on disk the same is told by `python -m tests.benchmarks.story_heads`: twice is too long here."""
    for what, seconds in restart_story(tmp_path, memory=False).items():
        print(f"{what}: {seconds:.1f} s")
