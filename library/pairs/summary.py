"""What a prepared folder holds, in numbers: by camera, ISO, scene and score; what to look at first; what failed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.pairs.index import Failure, Pair, read_index

SCORES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Edges of the groups by MS-SSIM: RawNIND's own. What a group begins with is in it, and 1 in the last."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Group:
    """Pairs that have something in common. Means are over noisy pairs, None without any.

    scenes       they are of
    noisy, clean  pairs of a clean and a noisy image, and of clean images
    flagged      pairs of both kinds that a person may want to look at
    failed       pairs that could not be prepared; None where it is not known what they have in common
    score        mean MS-SSIM of those that have one
    valid        mean share of pixels that count
    shift        the largest along an axis, full-resolution pixels, of all pairs; None without any
    """

    name: str
    scenes: int
    noisy: int
    clean: int
    flagged: int
    failed: int | None
    score: float | None
    valid: float | None
    shift: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Summary:
    """Of all rows of an index.

    groups    by what they are told apart: camera, ISO, scene, score
    worst     pairs of two images, those to look at first at the beginning
    flags     how many pairs have each
    """

    folder: Path
    pairs: tuple[Pair, ...]
    failures: tuple[Failure, ...]
    groups: dict[str, tuple[Group, ...]]
    worst: tuple[Pair, ...]
    flags: Counter[str]

    @property
    def page(self) -> Path:
        """Where `workloads.pairs_page` draws it."""
        return self.folder / "summary.html"

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Why pairs failed, and how many for each reason: the most frequent first."""
        return sorted(Counter(failure.error for failure in self.failures).items(), key=lambda item: (-item[1], item[0]))

    @property
    def num_scenes(self) -> int:
        return len({row.scene for row in (*self.pairs, *self.failures)})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the pairs themselves."""
        return {
            "folder": str(self.folder),
            "scenes": self.num_scenes,
            "pairs": len(self.pairs),
            "failed": len(self.failures),
            "flags": dict(self.flags),
            "reasons": dict(self.reasons),
            "groups": {name: [group.to_json() for group in groups] for name, groups in self.groups.items()},
        }

    def __str__(self) -> str:
        """Tables, then what failed and what is flagged, then the sum."""
        lines = [line for name, groups in self.groups.items() for line in (*_table(name, groups), "")]
        lines += [f"failed: {reason} ({count} pairs)" for reason, count in self.reasons]
        lines += [f"flagged: {flag} ({count} pairs)" for flag, count in sorted(self.flags.items())]
        sums = f"{len(self.pairs)} pairs of {self.num_scenes} scenes, {len(self.failures)} failed"
        return "\n".join([*lines, f"{self.page}: {sums}"])


def summarize(prepared: str | Path) -> Summary:
    """What a prepared folder holds. Only its index is read.

    raises  DataError for a folder without an index
    """
    rows = read_index(prepared)
    pairs = [row for row in rows if isinstance(row, Pair)]
    failures = [row for row in rows if isinstance(row, Failure)]
    failed = Counter(failure.scene for failure in failures)
    scenes = _grouped(pairs, lambda pair: pair.scene)
    # A scene all of whose pairs failed has a row too.
    scenes |= {scene: [] for scene in sorted(failed) if scene not in scenes}
    groups = {
        "camera": [_group(name, found) for name, found in _grouped(pairs, lambda pair: pair.camera or UNKNOWN).items()],
        "ISO": [_group(_iso(iso), found) for iso, found in _grouped(pairs, _sortable_iso).items()],
        "scene": [_group(name, found, failed[name]) for name, found in sorted(scenes.items())],
        "score": [_group(name, found) for name, found in _by_score(pairs)],
    }
    return Summary(
        Path(prepared),
        tuple(pairs),
        tuple(failures),
        {name: tuple(found) for name, found in groups.items()},
        tuple(sorted((pair for pair in pairs if not pair.is_one_image), key=_badness)),
        Counter(flag for pair in pairs for flag in pair.flags),
    )


def _badness(pair: Pair) -> tuple[Any, ...]:
    """Sorts what may be wrong before what is only noisy, and then the noisiest first."""
    score = pair.rgb_msssim if pair.rgb_msssim is not None else 0.0
    return pair.alignment_ok, -len(pair.flags), round(pair.mask_mean, 2), score, pair.scene, pair.f_path, pair.gt_path


def _grouped(pairs: Iterable[Pair], key: Callable[[Pair], Any]) -> dict[Any, list[Pair]]:
    """By key, in its order."""
    found: dict[Any, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(key(pair), []).append(pair)
    return dict(sorted(found.items()))


def _by_score(pairs: Sequence[Pair]) -> Iterable[tuple[str, list[Pair]]]:
    """Noisy pairs by their score. Clean ones have one that says nothing of noise."""
    noisy = [pair for pair in pairs if not pair.f_is_clean]
    known = [(pair.rgb_msssim, pair) for pair in noisy if pair.rgb_msssim is not None]
    below = [pair for score, pair in known if score < SCORES[0]]
    if below:
        yield f"below {SCORES[0]:g}", below
    for low, high in itertools.pairwise(SCORES):
        last = high == SCORES[-1]
        yield f"{low:g} to {high:g}", [pair for score, pair in known if low <= score and (score < high or last)]
    if unknown := [pair for pair in noisy if pair.rgb_msssim is None]:
        yield UNKNOWN, unknown


def _group(name: str, pairs: Sequence[Pair], failed: int | None = None) -> Group:
    noisy = [pair for pair in pairs if not pair.f_is_clean]
    scores = [pair.rgb_msssim for pair in noisy if pair.rgb_msssim is not None]
    return Group(
        name,
        scenes=len({pair.scene for pair in pairs}),
        noisy=len(noisy),
        clean=len(pairs) - len(noisy),
        flagged=sum(bool(pair.flags) for pair in pairs),
        failed=failed,
        score=sum(scores) / len(scores) if scores else None,
        valid=sum(pair.mask_mean for pair in noisy) / len(noisy) if noisy else None,
        shift=max((max(abs(pair.shift_y), abs(pair.shift_x)) for pair in pairs), default=None),
    )


def _sortable_iso(pair: Pair) -> float:
    return float("inf") if pair.f_iso is None else pair.f_iso


def _iso(iso: float) -> str:
    return UNKNOWN if iso == float("inf") else f"{iso:g}"


HEADINGS = ("scenes", "noisy", "clean", "flagged", "failed", "MS-SSIM", "valid", "shift")
"""Of the numbers of a group."""


def cells(group: Group) -> tuple[str, ...]:
    """The numbers of a group in words, in the order of `HEADINGS`; "" for what is not known."""
    return (
        f"{group.scenes:,}",
        f"{group.noisy:,}",
        f"{group.clean:,}",
        f"{group.flagged:,}",
        "" if group.failed is None else f"{group.failed:,}",
        "" if group.score is None else f"{group.score:.3f}",
        "" if group.valid is None else f"{group.valid:.1%}",
        "" if group.shift is None else f"{group.shift} px",
    )


def _table(name: str, groups: Sequence[Group]) -> list[str]:
    rows = [(name, *HEADINGS), *((group.name, *cells(group)) for group in groups)]
    used = [column for column in range(len(rows[0])) if column == 0 or any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in used}
    return [
        "  ".join(row[c].ljust(widths[c]) if c == 0 else row[c].rjust(widths[c]) for c in used).rstrip() for row in rows
    ]
