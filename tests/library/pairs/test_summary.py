from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from library.errors import DataError
from library.pairs.index import Failure, Pair, write_index
from library.pairs.summary import Summary, summarize
from tests.prepared_pairs import FAILED, PAIR

CLEAN = replace(
    PAIR, f_is_clean=True, f_sha256=PAIR.gt_sha256, f_path=PAIR.gt_path, f_iso=50.0, rgb_msssim=1.0, key="c"
)
PAIRS = [
    CLEAN,
    replace(PAIR, f_iso=800.0, rgb_msssim=0.9, flags=(), key="a", f_path="a"),
    replace(PAIR, scene="other", f_iso=None, rgb_msssim=None, shift_y=-9, camera="", flags=(), key="b", f_path="b"),
    replace(PAIR, f_iso=800.0, rgb_msssim=0.5, mask_mean=0.5, flags=("little valid",), key="d", f_path="d"),
    replace(PAIR, scene="third", alignment_ok=False, rgb_msssim=1.0, flags=("alignment uncertain",), key="e"),
]
FAILURES = [FAILED, replace(FAILED, scene="lost"), replace(FAILED, scene="lost", f_path="b", error="b: is empty")]


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    write_index(tmp_path, [*PAIRS, *FAILURES])
    return summarize(tmp_path)


def test_every_pair_is_counted_once_in_each_table(summary: Summary):
    noisy = sum(not pair.f_is_clean for pair in PAIRS)
    for name, groups in summary.groups.items():
        assert sum(group.noisy for group in groups) == noisy, name
        assert sum(group.clean for group in groups) == (0 if name == "score" else len(PAIRS) - noisy), name
    assert sum(group.failed or 0 for group in summary.groups["scene"]) == len(FAILURES)


def test_groups_are_by_what_they_have_in_common_and_say_so(summary: Summary):
    assert {g.name: g.noisy for g in summary.groups["camera"]} == {"Sony ILCE-7C": 3, "unknown": 1}
    by_iso = {group.name: group for group in summary.groups["ISO"]}
    assert list(by_iso) == ["50", "800", "65535", "unknown"]
    assert by_iso["800"].score == pytest.approx(0.7)
    assert by_iso["800"].valid == pytest.approx((PAIR.mask_mean + 0.5) / 2)
    assert by_iso["50"].score is None
    assert by_iso["unknown"].shift == 9
    by_scene = {group.name: group for group in summary.groups["scene"]}
    assert list(by_scene) == ["lamp & books", "lost", "other", "third"]
    assert (by_scene["lost"].noisy, by_scene["lost"].failed, by_scene["lost"].shift) == (0, 2, None)


def test_a_score_on_an_edge_begins_its_group_and_1_ends_the_last(summary: Summary):
    counted = {group.name: group.noisy for group in summary.groups["score"] if group.noisy}
    assert counted == {"0.5 to 0.6": 1, "0.9 to 0.95": 1, "0.99 to 1": 1, "unknown": 1}


def test_what_may_be_wrong_comes_before_what_is_only_noisy(summary: Summary):
    assert [pair.key for pair in summary.worst] == ["e", "d", "b", "a"]


def test_reasons_and_flags_are_counted_and_the_most_frequent_come_first(summary: Summary):
    assert summary.reasons == [(FAILED.error, 2), ("b: is empty", 1)]
    assert summary.flags == Counter(
        {PAIR.flags[0]: sum(pair.flags == PAIR.flags for pair in PAIRS), "little valid": 1, "alignment uncertain": 1}
    )
    assert summary.to_json()["flags"] == dict(summary.flags)


def test_what_it_says_has_a_line_for_every_group_and_ends_with_the_sum(summary: Summary):
    lines = str(summary).splitlines()
    for name, groups in summary.groups.items():
        start = next(number for number, line in enumerate(lines) if line.split("  ")[0] == name)
        assert [line.split("  ")[0] for line in lines[start + 1 : start + 1 + len(groups)]] == [g.name for g in groups]
    assert lines[-1] == f"{summary.page}: 5 pairs of 4 scenes, 3 failed"


def test_a_folder_of_failures_alone_is_summed_up_too(tmp_path: Path):
    rows: list[Pair | Failure] = [*FAILURES]
    write_index(tmp_path, rows)
    assert summarize(tmp_path).worst == ()
    with pytest.raises(DataError, match="is no index"):
        summarize(tmp_path / "nowhere")
