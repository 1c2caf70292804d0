"""What happens to the files of an archive, as lines of JSON for machines: `events.jsonl` in the output folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import Any

from library.errors import DataError

FILE = "events.jsonl"


class Events:
    """Appends one line an event: `time` (UTC, ISO 8601), `event`, and what belongs to it.

    run       begins: `files` there are, of which `todo` are not done
    started   `file`
    done      `file`, `seconds` of work, `linked` if its content was there already, `memory`: the most bytes that its
              worker has held so far
    failed    `file`, `seconds`, `reason`
    end       of the run: `done`, `skipped`, `failed`, `seconds`

    They are a courtesy, and the ledger is the truth: a line that cannot be written is left out, and stops nothing.
    """

    def __init__(self, file: RawIOBase) -> None:
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator[Events]:
        """Raises DataError for a folder that cannot be written."""
        path = folder / FILE
        try:
            opened = path.open("a+b", buffering=0)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}): choose another output folder") from None
        with opened as file:
            events = cls(file)
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a run was killed in the middle of a line
                    events._write("\n")
            yield events

    def say(self, event: str, **facts: Any) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        self._write(json.dumps(line, ensure_ascii=False) + "\n")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._file.write(text.encode())


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every event so far; a line that a kill has torn is left out."""
    events = []
    for line in (folder / FILE).read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
