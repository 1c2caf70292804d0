"""What is printed where nobody looks at a terminal: by this a queue knows that a job goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from workloads import progress


@pytest.mark.parametrize(("line_every_s", "printed"), [(0.0, ["coding: 1 of 3", "coding: 2 of 3"]), (60.0, [])])
def test_off_a_terminal_a_line_is_printed_now_and_then_and_nothing_ahead_of_its_time(
    line_every_s: float, printed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A queue stopped jobs that said nothing for hours, and had done a great deal in them."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", line_every_s)
    items = progress.track(iter("abc"), total=3, description="coding")
    assert [next(items), next(items)] == ["a", "b"]
    said = capsys.readouterr()
    assert (said.err.splitlines(), said.out) == (printed, "")
    assert list(items) == ["c"]


def test_what_is_followed_is_closed_with_the_one_who_follows() -> None:
    """Or actors would go on for nobody."""
    closed = []

    def items() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append(True)

    for _ in progress.track(items(), total=3, description="drawing"):
        break
    assert closed
