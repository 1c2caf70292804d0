"""How far a run over an archive is, or how it ended: read from its ledger, also while it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from library.inference.ledger import Ledger

_RATE_WINDOW = timedelta(hours=1)


@dataclass(frozen=True)
class ArchiveStatus:
    """Counts are of output files.

    waiting         were to be made, and nothing is known of them yet
    num_raws        with at least one output
    input_bytes     of these raws
    output_bytes    of the outputs that are done
    seconds         of work, summed over workers
    raws_per_hour   in the last hour in which the run worked; None if that cannot be said yet
    last            UTC, ISO 8601, of the newest row
    failures        raw file -> reason
    """

    folder: str
    done: int
    failed: int
    quarantined: int
    waiting: int
    num_raws: int
    input_bytes: int
    output_bytes: int
    seconds: float
    raws_per_hour: float | None
    last: str | None
    failures: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rate = f"{self.raws_per_hour:,.0f} raws an hour" if self.raws_per_hour is not None else "not known yet"
        remaining = ""
        if self.waiting and self.raws_per_hour:
            outputs_per_raw = self.done / self.num_raws
            remaining = f", about {self.waiting / outputs_per_raw / self.raws_per_hour:.1f} h left at that rate"
        lines = [
            f"{self.folder}: {self.done:,} outputs of {self.num_raws:,} raws are done",
            f"  failed       {self.failed:,}",
            f"  quarantined  {self.quarantined:,}",
            f"  waiting      {self.waiting:,}{remaining}",
            f"  size         {in_words(self.input_bytes)} of raws, {in_words(self.output_bytes)} of outputs",
            f"  rate         {rate}",
            f"  last         {self.last or 'nothing yet'}",
        ]
        return "\n".join(lines + [f"  failed: {reason}" for reason in self.failures.values()])


def archive_status(folder: str | Path) -> ArchiveStatus:
    """What the ledger of an output folder says. Changes nothing, and may be asked while a run is going on.

    raises  DataError for a folder without a ledger, or a ledger that cannot be read
    """
    folder = Path(folder)
    with Ledger.read(folder) as ledger:
        rows = list(ledger.rows())
        claims = ledger.claims()
        counts = ledger.counts()
    done = {row.input_path: row for row in rows if row.status == "done"}
    ended = sorted(datetime.fromisoformat(row.finished_at) for row in done.values())
    window = [time for time in ended if time >= ended[-1] - _RATE_WINDOW]
    hours = (window[-1] - window[0]).total_seconds() / 3600 if window else 0.0
    return ArchiveStatus(
        folder=str(folder),
        **counts,
        waiting=len(claims - {row.output_path for row in rows}),
        num_raws=len(done),
        input_bytes=sum(row.input_size or 0 for row in done.values()),
        output_bytes=sum(row.output_size or 0 for row in rows if row.status == "done"),
        seconds=sum({row.input_path: row.seconds for row in rows}.values()),
        raws_per_hour=(len(window) - 1) / hours if hours > 0 else None,
        last=max((row.finished_at for row in rows), default=None),
        failures={row.input_path: row.error or row.status for row in rows if row.status != "done"},
    )


def in_words(num_bytes: float) -> str:
    """A size with its unit, such as 3.21 GB: a thousand of one make the next."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
