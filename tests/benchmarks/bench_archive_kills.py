"""An archive of 500 small raws, 60 hostile ones among them, through two actors: ten random kills, against none.

python -m tests.benchmarks.bench_archive_kills [raws kills first_seed last_seed]   (from the project's root; 500 10 1 3)

Actors, the driver and whole nodes are killed (SIGKILL) after random numbers of files, on a cluster of two nodes of one
CPU each. Then the run goes on to its end, and once more for what the kills have quarantined. Its files must be, byte
for byte, those of a run that nobody disturbed. Exit code 1 where they are not.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from library.bundle import write_bundle
from library.inference.archive_events import read_events
from library.models import nafnet
from tests.archive_kills import ArchiveRun, kill_at_random, outputs_of, write_archive
from tests.kills import Nodes, cluster_of

NUM_HOSTILE = 62
"""Of which one is an innocent folder, and one is taken away."""


def settings_of(raws: Path, output: Path, bundle: Path) -> dict[str, Any]:
    return {"raws": str(raws), "output": str(output), "bundle": str(bundle)}


def undisturbed(settings: dict[str, Any], nodes: Nodes) -> float:
    """Seconds of a run that nobody disturbs."""
    start = time.monotonic()
    with ArchiveRun(settings, nodes.address) as run:
        run.finish()
    return time.monotonic() - start


def disturbed(settings: dict[str, Any], nodes: Nodes, rng: random.Random, num_kills: int, num_files: int) -> list[str]:
    """Run with kills, and to the end; what was killed."""
    targets = rng.choices(["actor", "driver", "node"], weights=[5, 3, 2], k=num_kills)

    def lose(actor: Any) -> None:
        nodes.kill(actor.node_id)
        nodes.add()

    with ArchiveRun(settings, nodes.address) as run:
        killed = kill_at_random(run, targets, rng, num_files=num_files, lose_node=lose)
        run.finish()
    with ArchiveRun(settings, nodes.address) as run:
        run.finish()
    return killed


def main() -> int:
    num_files, num_kills, first, last = (int(word) for word in (sys.argv[1:] or (500, 10, 1, 3)))
    print(f"torch {torch.__version__}, ray {ray.__version__}; two nodes of one CPU each", flush=True)
    torch.manual_seed(0)
    differ = 0
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as work, cluster_of(2) as nodes:
        folder = Path(work)
        model = nafnet.Config(width=4).build()
        write_bundle(folder / "bundle", model, name="b", training={}, data_digest="none", metrics={}, step=1)
        *hostile, vanishing = write_archive(folder / "raws", num_files, NUM_HOSTILE, side=300)
        vanishing.unlink()
        seconds = undisturbed(settings_of(folder / "raws", folder / "undisturbed", folder / "bundle"), nodes)
        expected = outputs_of(folder / "undisturbed")
        reasons = [event for event in read_events(folder / "undisturbed") if event["event"] == "failed"]
        print(
            f"{num_files - 1} files: {len(expected)} outputs, {len(reasons)} failures with their reasons, "
            f"{seconds:.0f} s undisturbed",
            flush=True,
        )
        assert len(expected) == num_files - NUM_HOSTILE
        assert len(reasons) == len(hostile) - 1
        print("| seed | kills | outputs | differ | failures | seconds | killed |\n|---|---|---|---|---|---|---|")
        for seed in range(first, last + 1):
            output, start = folder / f"seed-{seed}", time.monotonic()
            settings = settings_of(folder / "raws", output, folder / "bundle")
            killed = disturbed(settings, nodes, random.Random(seed), num_kills, num_files)
            found = outputs_of(output)
            wrong = [path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path)]
            ends = [event for event in read_events(output) if event["event"] == "end"]
            differ += bool(wrong) or len(killed) < num_kills or ends[-1]["failed"] != len(reasons)
            seconds = time.monotonic() - start
            print(
                f"| {seed} | {len(killed)} | {len(found)} | {len(wrong)} | {ends[-1]['failed']} | {seconds:.0f} | "
                f"{', '.join(killed)} |",
                flush=True,
            )
    print(f"{differ} of {last - first + 1} disturbed runs differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
