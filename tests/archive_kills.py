"""Kill a run over an archive in every way there is, and compare what it leaves with what a run left alone does.

Used by tests/workloads/test_archive_kills.py with a small archive, and by tests/benchmarks/bench_archive_kills.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray.util.state import list_actors

from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.inference.archive_events import FILE, read_events
from tests.hostile_raws import write_hostile_files

ROOT = Path(__file__).resolve().parents[1]
LAST = "zzz, which vanishes.dng"
"""The last in order, so that nobody has come to it when it is taken away."""


def write_raw(path: Path, seed: int, side: int) -> None:
    """A noisy ramp, of the same bytes every time."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(600, 9000, side) + rng.normal(0, 300, (side, side))
    black_level = np.full((2, 2), 512.0)
    metadata = ImageMetadata(make="Stillgrain", model="Test", iso=800.0)
    mosaic = ramp.clip(0, 16383).astype(np.uint16)
    write_cfa_dng(path, mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=metadata)


def write_archive(folder: Path, num_files: int, num_hostile: int, *, side: int) -> list[Path]:
    """An archive of `num_files`, of which two are equal and `num_hostile` can never become anything; returns those."""
    for number in range(num_files - num_hostile - 1):
        write_raw(folder / f"{number % 7}" / f"{number:04}.dng", number, side)
    shutil.copy(folder / "0" / "0000.dng", folder / "a twin.dng")
    hostile = write_hostile_files(folder / "3 hostile", (folder / "0" / "0000.dng").read_bytes(), num_hostile - 1)
    write_raw(folder / LAST, num_files, side)
    return [*hostile, folder / LAST]


def outputs_of(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of all that a run has left in its output folder, but for its books."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name not in (FILE, "report.html")]
    books = ("ledger.", "samples.json", "run.json")
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths
        if not p.name.startswith(books)
    }


class ArchiveRun:
    """`stillgrain run` over an archive as a process of its own, started again as often as it takes."""

    def __init__(self, settings: dict[str, Any], address: str) -> None:
        self.output, self.address = Path(settings["output"]), address
        self.config = self.output.with_name(f"{self.output.name}.yaml")
        self.config.write_text(yaml.safe_dump({"workload": "infer", **settings}))
        self.log = self.output.with_name(f"{self.output.name}.log")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stillgrain", "run", str(self.config)],
                cwd=ROOT,
                env={**os.environ, "RAY_ADDRESS": self.address},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> ArchiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def num_ended(self) -> int:
        """Files that have ended, in this and in earlier runs."""
        with contextlib.suppress(FileNotFoundError):
            return len({e["file"] for e in read_events(self.output) if e["event"] in ("done", "failed")})
        return 0

    def actors(self) -> list[Any]:
        """Its workers that are alive: pid and node_id."""
        alive = [("state", "=", "ALIVE"), ("class_name", "=", "_Worker")]
        return list_actors(self.address, filters=alive, detail=True)

    def wait(self, condition: Callable[[], bool], timeout: float = 180) -> bool:
        """Until something holds. False when the run has ended instead."""
        deadline = time.monotonic() + timeout
        while not condition():
            if not self.is_running:
                return False
            assert time.monotonic() < deadline, f"waited for {timeout} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        return True

    def kill_driver(self) -> None:
        """End it, and start it again at once, while its workers may still be there."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def finish(self, timeout: float = 600) -> None:
        """Its end; 1 is the code of a run with files that failed."""
        code = self.process.wait(timeout)
        assert code in (0, 1), f"the run ended with code {code}:\n{self.log.read_text()[-3000:]}"


def kill_at_random(
    run: ArchiveRun,
    targets: list[str],
    rng: random.Random,
    *,
    num_files: int,
    lose_node: Callable[[Any], None] | None = None,
) -> list[str]:
    """Kill `targets` one after another, each when so many files have ended as a lot says; returns what was killed when.

    lose_node  loses the node of an actor, and adds another
    """
    # Not in the last tenth: after its last file, a run is over.
    moments = sorted(rng.sample(range(1, num_files * 9 // 10), len(targets)))
    killed = []
    for moment, target in zip(moments, targets, strict=True):
        if not run.wait(lambda moment=moment: run.num_ended >= moment):
            break
        if target == "driver":
            run.kill_driver()
        else:
            if not run.wait(lambda: bool(run.actors())):
                break
            actor = rng.choice(run.actors())
            if target == "node":
                assert lose_node is not None
                lose_node(actor)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(actor.pid, signal.SIGKILL)
        killed.append(f"{target} after {moment}")
    return killed
