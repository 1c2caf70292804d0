"""Six jobs on a cluster of two nodes that loses its dispatcher, a node and a job on the way; all six end right.

python -m tests.benchmarks.story_cluster            # about five minutes on two cores; prints what happened, and when
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster import jobqueue, local
from cluster.processes import Process, family, send
from tests.scenes import paint_scenes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = "workloads/configs"
SUBMISSION = re.compile(r"submission_id='(stillgrain-[^']+)'.*?status=<JobStatus\.(\w+)", re.S)


class Story:
    """A folder for everything, a cluster, a queue, and what is said about them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue = folder / "queue"
        self.since = time.monotonic()
        self.cluster = self.up()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {**self.cluster.environment, "OMP_NUM_THREADS": "1"}
        self.dispatcher: subprocess.Popen[bytes] | None = None
        self.say(f"cluster up: {', '.join(node.name for node in self.cluster.nodes)}, token asked for")

    def up(self) -> local.LocalCluster:
        """All of it, or what is missing."""
        for again in (True, True, False):
            try:
                return local.up(self.folder / "cluster", nodes=2, cpus_per_node=2, job_slots=2, object_store_mb=100)
            except local.LocalClusterError as error:
                # Ray gives a node 30 s to register, whatever the machine is doing, and that is written in its code.
                if not again or "timed out during startup" not in str(error):
                    raise
                self.say("a node was too slow for Ray; trying again")
        raise AssertionError

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.since:6.1f} s  {what}", flush=True)

    def stillgrain(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "stillgrain", *words], cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"stillgrain {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, name: str, config: str, *words: str, priority: int, after: tuple[str, ...] = ()) -> None:
        options = [word for job in after for word in ("--after", job)]
        options += ["--name", name, "--priority", str(priority), "--queue", str(self.queue)]
        self.stillgrain("submit", f"{CONFIGS}/{config}", *words, *options)
        self.say(f"submitted {name}, priority {priority}{', after ' + ' and '.join(after) if after else ''}")

    def dispatch(self) -> None:
        address = self.cluster.dashboard
        words = ["queue", "dispatch", "--address", address, "--until-idle", "--queue", str(self.queue)]
        with open(self.folder / "dispatcher.log", "ab") as log:
            self.dispatcher = subprocess.Popen(
                [sys.executable, "-m", "stillgrain", *words],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def job(self, name: str) -> dict[str, Any]:
        return jobqueue.show(name, self.queue)

    def until(self, what: str, true: Callable[[], Any], within_s: float = 300) -> Any:
        deadline = time.monotonic() + within_s
        while not (found := true()):
            ended = self.dispatcher is None or self.dispatcher.poll() is not None
            jobs = json.dumps(jobqueue.status(self.queue)["jobs"], indent=1)
            assert not ended, f"the dispatcher has ended before: {what}\n{jobs}"
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}\n{jobs}"
            time.sleep(0.1)
        return found

    def processes_of(self, node: str, word: str) -> list[Process]:
        """Of a node of the cluster, those with a word in their command line."""
        root = next(n.process for n in self.cluster.nodes if n.name == node)
        found = []
        for process in family([root], "STILLGRAIN_NOTHING=1"):
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" "):
                    found.append(process)
        return found

    def close(self) -> None:
        if self.dispatcher is not None and self.dispatcher.poll() is None:
            self.dispatcher.kill()
            self.dispatcher.wait()
        local.down(self.folder / "cluster")


@contextlib.contextmanager
def _story() -> Iterator[Story]:
    folder = Path(tempfile.mkdtemp(prefix="stillgrain-story-"))
    try:
        story = Story(folder)
        try:
            yield story
        finally:
            story.close()
        shutil.rmtree(folder)
    except BaseException:
        print(f"what there is lies in {folder}", file=sys.stderr)
        raise


def main() -> None:
    with _story() as story:
        _submit_six(story)
        story.dispatch()

        story.until("a first job runs", lambda: story.job("first")["state"] == "running")
        assert story.dispatcher is not None
        story.dispatcher.send_signal(signal.SIGKILL)
        story.dispatcher.wait()
        story.say("the dispatcher was killed; jobs go on")
        story.dispatch()

        run, trials = (story.folder / "runs" / name for name in ("first", "sweep/trials.json"))
        left = {_lose_node: lambda: _step(run) >= 50, _kill_sweep: trials.exists}
        while left:
            # Whichever is ready first: on a slow machine that is not the same each time.
            ready = story.until("there is something to kill", lambda: [kill for kill, true in left.items() if true()])
            ready[0](story)
            del left[ready[0]]

        story.until("all have ended", lambda: story.dispatcher is not None and story.dispatcher.poll() == 0, 420)
        _check(story)
        story.say("all six ended right, in order, each once; ray job list and stillgrain queue agree")


def _lose_node(story: Story) -> None:
    """One that has workers of the training."""
    run = story.folder / "runs" / "first"
    nodes = story.cluster.nodes
    node = story.until(
        "its workers", lambda: next((n.name for n in nodes if story.processes_of(n.name, "RayTrainWorker")), None)
    )
    at = _step(run)
    local.down(story.folder / "cluster", node=node)
    lost = time.monotonic()
    story.say(f"{node} was lost, with workers of first at step {at}")
    story.cluster = story.up()
    story.say(f"{node} is back after {time.monotonic() - lost:.1f} s")
    story.until("the training goes on", lambda: _step(run) > at or story.job("first")["state"] == "succeeded")
    story.say(f"first goes on, {time.monotonic() - lost:.1f} s after the loss")


def _kill_sweep(story: Story) -> None:
    """The job's own process, as a head that is out of memory does."""
    (driver,) = story.until("its process", lambda: story.processes_of("head", f"stillgrain run {CONFIGS}/sweep"))
    tried = len(story.job("sweep")["attempts"])
    send(driver, signal.SIGKILL)
    story.until("the queue knows", lambda: story.job("sweep")["failures"] >= tried)
    story.say("the sweep's process was killed; the queue will try it again")


def _submit_six(story: Story) -> None:
    scenes, runs = paint_scenes(story.folder / "scenes"), story.folder / "runs"
    dataset = {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 168}
    small = {
        "model": {"kind": "nafnet", "width": 4},
        "dataset": dataset,
        "batch_size": 4,
        "steps": 300,
        "log_every": 5,
        "validate_every": 100,
        "checkpoint_every": 10,
        "num_pictures": 1,
    }
    storage = f"storage={runs}"
    raws, bundle = runs / "suite" / "raws", runs / "first" / "bundle"
    story.submit("second", "denoise_demo.yaml", *_words(small), storage, "name=second", "scaling.workers=1", priority=0)
    story.submit("first", "denoise_demo.yaml", *_words(small), storage, "name=first", priority=9)
    story.submit(
        "simulate", "simulate_demo.yaml", *_words({"dataset": dataset}), f"output={runs}/suite", storage, priority=5
    )
    story.submit(
        "infer",
        "infer.yaml",
        f"raws={raws}",
        f"output={runs}/archive",
        f"bundle={bundle}",
        priority=9,
        after=("simulate", "first"),
    )
    changes = {**small, "steps": 100, "validate_every": 50, "scaling.workers": 1}
    sweep = {"changes": changes, "space": {"losses.mse.weight": {"grid": [1.0, 3.0]}}, "num_trials": 1}
    story.submit(
        "sweep",
        "sweep_loss_weights.yaml",
        *_words(sweep),
        storage,
        "name=sweep",
        "searcher={kind: grid}",
        priority=3,
    )
    story.submit(
        "evaluate",
        "evaluate_demo.yaml",
        *_words({"bundles": {"first": str(bundle)}, "baselines": ["gaussian"]}),
        f"suites.held-out.raws={raws}",
        f"suites.held-out.truth={runs}/suite/truth",
        f"output={runs}/evaluation",
        "crop=162",
        priority=1,
        after=("simulate", "first"),
    )


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _step(run: Path) -> int:
    """The last that a run has recorded."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return 0
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _check(story: Story) -> None:
    names = ("first", "simulate", "infer", "sweep", "evaluate", "second")
    jobs = {name: story.job(name) for name in names}
    assert {name: job["state"] for name, job in jobs.items()} == dict.fromkeys(names, "succeeded"), {
        name: job["reason"] for name, job in jobs.items()
    }
    for name, job in jobs.items():
        codes = [attempt["exit_code"] for attempt in job["attempts"]]
        assert codes.count(0) == 1, f"{name}: {codes}"
        story.say(f"{name}: {len(codes)} attempt{'s' * (len(codes) > 1)}, exit codes {codes}")
    assert -signal.SIGKILL in [attempt["exit_code"] for attempt in jobs["sweep"]["attempts"]]
    _check_order(jobs)
    runs = story.folder / "runs"
    raws = sorted(path.stem for path in (runs / "suite" / "raws").rglob("*.dng"))
    assert raws
    assert sorted(path.stem for path in (runs / "archive").rglob("*.dng")) == raws
    trials = json.loads((runs / "sweep" / "trials.json").read_text())
    assert [trial["status"] for trial in trials] == ["done", "done"], trials
    for file in ("first/bundle/manifest.json", "second/bundle/manifest.json", "evaluation/evaluation.json"):
        assert (runs / file).exists(), file

    listed = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "job", "list", "--address", story.cluster.dashboard],
        env=story.environment,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    # `ray job list` writes to either, with the colours of its log.
    theirs = dict(SUBMISSION.findall(listed.stdout + listed.stderr))
    ours = {
        attempt["submission_id"]: "SUCCEEDED" if attempt["exit_code"] == 0 else "FAILED"
        for job in jobs.values()
        for attempt in job["attempts"]
    }
    assert theirs == ours, (theirs, ours)


def _check_order(jobs: Mapping[str, Mapping[str, Any]]) -> None:
    """Whoever was started first while another that was ready mattered more?"""
    begun = {name: _at(job, "submitting") for name, job in jobs.items()}
    ended = {name: _at(job, "succeeded") for name, job in jobs.items()}
    numbers = {job["job"]: name for name, job in jobs.items()}
    for name, job in jobs.items():
        needed = [numbers[number] for number in job["after"]]
        assert all(ended[other] <= begun[name] for other in needed), name
        ready = max([_at(job, "submitted"), *(ended[other] for other in needed)])
        for other, rival in jobs.items():
            if rival["priority"] < job["priority"] and begun[other] < begun[name]:
                assert begun[other] <= ready, f"{other} was started before {name}, which was ready and matters more"


def _at(job: Mapping[str, Any], what: str) -> float:
    """When that first happened to it."""
    return next(datetime.fromisoformat(e["at"]).timestamp() for e in job["events"] if e["what"].startswith(what))


if __name__ == "__main__":
    main()
