"""Damaged raws, DNGs, EXRs, TIFFs and pictures through the readers: what comes of each, how long it takes, what memory.

python -m tests.benchmarks.bench_fuzz_files [N]   (from the project's root; 2000 if not said)

Damaged are the files of ../shared/data, where it is there, and small ones that are made here. Each is read in a child
process with a limit of memory and of time, as archive workers do. What is not read or refused is kept in --keep.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from library.files.isolate import IsolatedReader
from tests.benchmarks.bench_models import commit, processor
from tests.mutants import Kind, Outcome, examples, mutant, outcome

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
OUTCOMES: tuple[Outcome, ...] = ("read", "refused", "crashed", "too long", "too much memory")


def shared_files() -> dict[Path, Kind]:
    """Files of cameras and conformance tests, with the reader that is for them."""
    patterns: dict[str, Kind] = {
        "raw/*.crw": "raw",
        "raw/*.kdc": "raw",
        "raw/*.dng": "raw",
        "raw/*.raf": "raw",
        "edge/*.gpr": "raw",
        "edge/*linear*.dng": "linear DNG",
        "synthetic/*.dng": "raw",
        "exr/*.exr": "image",
        "rgb/*/*.png": "image",
        "hdr/*.hdr": "image",
        "rgb16/*/*.png": "image",
    }
    return {path: kind for pattern, kind in patterns.items() for path in sorted(SHARED_DATA.glob(pattern))}


def peak_memory(process_id: int | None) -> int:
    """Bytes that a process has had at most; 0 where nothing tells."""
    status = Path(f"/proc/{process_id}/status")
    if not status.exists():
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mutants", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=1.0, metavar="GIB", help="that reading one file may take")
    parser.add_argument("--seconds", type=float, default=30.0, help="that reading one file may take")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for files that crash, hang or want all memory")
    words = parser.parse_args()
    limits = {"memory_bytes": int(words.memory * 2**30), "seconds": words.seconds}
    rng = np.random.default_rng(words.seed)
    console = Console(width=max(110, Console().width))  # also into a file
    ends: dict[str, Counter[Outcome]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    highest: dict[str, int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as name, IsolatedReader() as reader:
        files = {**shared_files(), **examples(Path(name))}
        paths = list(files)
        with console.status("reading") as status:
            for number in range(words.mutants):
                path, donor = paths[number % len(paths)], paths[int(rng.integers(len(paths)))]
                label = f"{path.suffix[1:]}, {files[path]}"
                damaged = Path(name, f"mutant_{number}{path.suffix}")
                damaged.write_bytes(mutant(path.read_bytes(), donor.read_bytes(), rng))
                start = time.perf_counter()
                end = outcome(reader, damaged, files[path], **limits)
                ends[label][end] += 1
                slowest[label] = max(slowest[label], time.perf_counter() - start)
                highest[label] = max(highest[label], peak_memory(reader.process_id))
                if words.keep and end not in ("read", "refused"):
                    words.keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(damaged, words.keep / f"{end.replace(' ', '_')}_{number}_{path.name}")
                damaged.unlink()
                status.update(f"reading {number + 1}")
    table = Table(
        caption=f"{len(paths)} files damaged; limits {words.memory:g} GiB beyond the start, {words.seconds:g} s"
    )
    for column in ("files", *OUTCOMES, "slowest s", "peak MiB so far"):
        table.add_column(column, justify="left" if column == "files" else "right")
    for label in sorted(ends):
        counts = [str(ends[label][end]) for end in OUTCOMES]
        table.add_row(label, *counts, f"{slowest[label]:.2f}", f"{highest[label] / 2**20:.0f}")
    totals = [str(sum(counter[end] for counter in ends.values())) for end in OUTCOMES]
    table.add_row(
        "all", *totals, f"{max(slowest.values(), default=0):.2f}", f"{max(highest.values(), default=0) / 2**20:.0f}"
    )
    console.print(f"commit {commit()}, python {platform.python_version()}, {processor()}")
    console.print(table)
    console.print("This process survived all of them; every error named its file.")


if __name__ == "__main__":
    main()
