"""What became of an archive, as one page: numbers, failures with their reasons, pictures before and after, provenance.

<output folder>/report.html
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from library.files.atomic import whole_file
from library.inference.archive_events import read_events
from library.inference.archive_inputs import printable
from library.inference.archive_samples import Sample, by_chance, changed_most, read_samples
from library.inference.archive_status import ArchiveStatus, archive_status, in_words
from workloads.charts import SERIES, add_line, new_axes, themed_svg
from workloads.templates import write_page

PAGE = "report.html"
_BOOK = Path(".stillgrain", "run.json")
_LONGEST_TABLE = 5000
_NUM_BINS = 60


def is_archive(folder: Path) -> bool:
    """Whether a run over an archive has left its ledger here."""
    return (folder / ".stillgrain" / "ledger.sqlite").is_file()


def note_run(folder: Path, facts: Mapping[str, Any]) -> None:
    """Keep what the last run was, for the page: JSON of command, config, bundle, versions."""
    # On a disk that is full the page goes without.
    with suppress(OSError), whole_file(folder / _BOOK) as temporary:
        temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")


def write_archive_page(folder: Path) -> UPath:
    """Write the page of an output folder anew, whole or not at all; returns its path.

    raises  DataError for a folder without a ledger, or a ledger that cannot be read
    """
    status = archive_status(folder)
    events = _events(folder)
    runs = _runs(events)
    failures = _failures(status, runs[-1] if runs else [])
    samples = read_samples(folder)[1]
    book = _book(folder)
    return write_page(
        UPath(folder / PAGE),
        "archive.html.j2",
        title=folder.name,
        summary=_summary(status, failures),
        tiles=_tiles(status, failures, runs),
        kinds=Counter(kind for _, kind, _ in failures).most_common(),
        failures=failures[:_LONGEST_TABLE],
        num_hidden=len(failures[_LONGEST_TABLE:]),
        sheets=_sheets(samples),
        charts=_charts(runs),
        provenance=_provenance(book, status, runs),
        config=book.get("config"),
    )


# --- what the books say -----------------------------------------------------------------------------------------------


class _Ended(NamedTuple):
    """A file's end: seconds of running, over all runs, when it came; and the worker's memory then."""

    time: float
    memory: int


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_events(folder)
    except OSError:
        return []


def _runs(events: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The events of each run that had something to do, in order."""
    runs: list[list[Mapping[str, Any]]] = []
    for event in events:
        if event["event"] == "run":
            runs.append([])
        if runs:
            runs[-1].append(event)
    return [run for run in runs if any(event["event"] in ("done", "failed") for event in run)]


def _book(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _BOOK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _failures(status: ArchiveStatus, last_run: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Raw, kind and reason: those in the ledger, and of the last run those that have no output to be there for."""
    found = dict(status.failures)
    known = set(found.values())
    found |= {e["file"]: e["reason"] for e in last_run if e["event"] == "failed" and e["reason"] not in known}
    return sorted((printable(name), *_parted(name, reason)) for name, reason in found.items())


def _parted(name: str, reason: str) -> tuple[str, str]:
    """What kind of failure, and all of it without the name of the file, which stands beside it."""
    head, found, tail = reason.partition(": ")
    text = tail if found and head.endswith(Path(name).name) else reason
    # Up to what differs from file to file: a bracket, the remedy, a number.
    kind = re.split(r" \(|[:;]|, ", text, maxsplit=1)[0]
    return textwrap.shorten(re.sub(r"\d[\d.,]*", "…", kind), 60, placeholder=" …"), text


def _ended(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[_Ended]:
    """Ends of the files that were done. What lies between two runs is no time."""
    ends, before = [], 0.0
    for run in runs:
        times = [datetime.fromisoformat(event["time"]).timestamp() for event in run]
        for event, time in zip(run, times, strict=True):
            if event["event"] == "done":
                ends.append(_Ended(before + time - times[0], event.get("memory", 0)))
        before += times[-1] - times[0]
    return ends


# --- in words and pictures --------------------------------------------------------------------------------------------


def _summary(status: ArchiveStatus, failures: Sequence[object]) -> str:
    waiting = f", {status.waiting:,} outputs are still to be made" if status.waiting else ""
    failed = f"{len(failures):,} failed" if failures else "none failed"
    return f"{status.num_raws:,} raws have their {status.done:,} outputs, {failed}{waiting}."


def _tiles(
    status: ArchiveStatus, failures: Sequence[object], runs: Sequence[Sequence[Mapping[str, Any]]]
) -> list[tuple[str, str, str]]:
    ends = _ended(runs)
    tiles = [
        ("Raws done", f"{status.num_raws:,}", ""),
        ("Failed", f"{len(failures):,}", ""),
        ("Raws", *in_words(status.input_bytes).split(" ", 1)),
        ("Outputs", *in_words(status.output_bytes).split(" ", 1)),
    ]
    if len(ends) > 1 and ends[-1].time > ends[0].time:
        rate = 3600 * (len(ends) - 1) / (ends[-1].time - ends[0].time)
        tiles.append(("Rate", f"{rate:,.0f}", "raws an hour"))
    if memory := max((end.memory for end in ends), default=0):
        tiles.append(("Memory of a worker, at most", *in_words(memory).split(" ", 1)))
    return tiles


def _charts(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    ends = _ended(runs)
    length = ends[-1].time if ends else 0.0
    if len(ends) < 10 or length <= 0:
        return []
    unit, seconds = ("hours", 3600.0) if length > 7200 else ("minutes", 60.0) if length > 120 else ("seconds", 1.0)
    num_bins = min(_NUM_BINS, len(ends) // 5)
    width = length / num_bins
    counts = Counter(min(int(end.time / width), num_bins - 1) for end in ends)
    rate = [((number + 0.5) * width / seconds, 3600 * counts[number] / width) for number in range(num_bins)]
    charts = [("Raws an hour", rate)]
    if any(end.memory for end in ends):
        peaks: dict[int, int] = {}
        for end in ends:
            number = min(int(end.time / width), num_bins - 1)
            peaks[number] = max(peaks.get(number, 0), end.memory)
        memory = [((number + 0.5) * width / seconds, peak / 1e9) for number, peak in sorted(peaks.items())]
        charts.append(("Memory of a worker, at most (GB)", memory))
    drawn = []
    for label, points in charts:
        axes = new_axes(label)
        axes.set_xlabel(f"{unit} of running")
        add_line(axes, points, label, color=SERIES[0])
        axes.set_ylim(0, 1.1 * max(value for _, value in points) or 1)
        axes.set_xlim(0, length / seconds)
        drawn.append({"svg": themed_svg(axes, f"{label} over {unit} of running")})
    return drawn


def _sheets(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    kinds = (
        ("Changed most", changed_most(samples)),
        ("By chance", [s for s in by_chance(samples) if s not in changed_most(samples)]),
    )
    return [{"name": name, "samples": [_shown(sample) for sample in chosen]} for name, chosen in kinds if chosen]


def _shown(sample: Sample) -> dict[str, Any]:
    pictures = [
        {"source": f"data:image/png;base64,{content}", "label": label, "note": ""}
        for label, content in (("Before", sample.before), ("After", sample.after))
    ]
    return {"name": sample.name, "note": f"{sample.psnr:.1f} dB from before to after", "pictures": pictures}


def _provenance(
    book: Mapping[str, Any], status: ArchiveStatus, runs: Sequence[Sequence[Mapping[str, Any]]]
) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in book.get("versions", {}).items())
    facts = {
        "Command": book.get("command", ""),
        "Bundle": book.get("bundle", ""),
        "Versions": versions,
        "Machine": book.get("machine", ""),
        "Runs that had something to do": str(len(runs)),
        "First and last event": f"{runs[0][0]['time']} … {runs[-1][-1]['time']}" if runs else "",
        "Work, summed over workers": f"{status.seconds / 3600:.2f} h",
        "Ledger": ".stillgrain/ledger.sqlite beside this page: for every output the digests of raw, bundle and file",
    }
    return [(name, value) for name, value in facts.items() if value]
