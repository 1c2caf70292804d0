"""What a sweep costs beside its trials: eight runs by Ray Tune, against the same one after another from the shell.

    python -m tests.benchmarks.bench_sweep [STEPS]

Wall time of whole commands. The shell's runs are without Ray (scaling.workers=0), each in a process of its own; the
sweep has two trials at a time where there are two CPUs. Start-up is told apart: of the sweep, until its first trial
trains; of the shell, what a command takes that only reads the config.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
import torch
import yaml

_RATES = [1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3]
_BASE = "workloads/configs/denoise_demo.yaml"


def main(steps: int = 300) -> None:
    changes = {"steps": steps, "validate_every": steps, "checkpoint_every": steps, "log_every": 25, "num_pictures": 0}
    with tempfile.TemporaryDirectory() as folder:
        # The scenes are prepared once for both.
        _stillgrain(
            "run", _BASE, "name=store", "steps=25", *_common(folder), "validate_every=25", "checkpoint_every=25"
        )
        read, _ = _timed("check", _BASE)
        shell = [
            _timed("run", _BASE, f"name=shell{n}", f"optim.lr={lr}", *_common(folder), *_words(changes))[0]
            for n, lr in enumerate(_RATES)
        ]
        sweep = {
            "workload": "sweep",
            "name": "sweep",
            "storage": folder,
            "base": os.path.abspath(_BASE),
            "changes": {**changes, "scaling": {"workers": 1}},
            "space": {"optim.lr": {"grid": _RATES}},
            "searcher": {"kind": "grid"},
            "metrics": {"val/psnr": "max"},
        }
        config = Path(folder, "sweep.yaml")
        config.write_text(yaml.safe_dump(sweep, sort_keys=False), encoding="utf-8")
        began = time.time()
        whole, _ = _timed("run", str(config))
        first = min(file.stat().st_mtime for file in Path(folder, "sweep", "trials").glob("*/writer.json"))
        same = sum(
            _psnr(Path(folder, f"shell{n}")) == _psnr(Path(folder, "sweep", "trials", f"{n:03d}")) for n in range(8)
        )
    print(f"torch {torch.__version__}, Ray {ray.__version__}, {os.cpu_count()} CPUs, {steps} steps a trial")
    print(
        f"shell, one after another  {sum(shell):6.1f} s   of which start-up about {8 * read:5.1f} s ({read:.1f} s each)"
    )
    print(f"sweep                     {whole:6.1f} s   of which start-up       {first - began:5.1f} s")
    trials = (whole - first + began) / sum(shell)
    print(f"sweep over shell          {whole / sum(shell):6.2f}     without start-up {trials:.2f}")
    print(f"trials with the numbers of the shell's runs: {same} of 8")


def _common(folder: str) -> list[str]:
    return [f"storage={folder}", "scaling.workers=0"]


def _words(changes: dict[str, int]) -> list[str]:
    return [f"{key}={value}" for key, value in changes.items()]


def _timed(*words: str) -> tuple[float, str]:
    start = time.monotonic()
    text = _stillgrain(*words)
    return time.monotonic() - start, text


def _stillgrain(*words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "stillgrain", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"stillgrain {' '.join(words)}:\n{done.stderr}")
    return done.stdout


def _psnr(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return next(line["value"] for line in reversed(lines) if (line["split"], line["name"]) == ("val", "psnr"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
