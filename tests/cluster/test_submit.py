"""What travels with a job, what is refused before, and that nothing secret goes along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from typer.testing import CliRunner

from cluster import jobqueue, package
from cluster.errors import QueueError, SubmitError
from cluster.package import contents, pack
from cluster.prepare import declared_bundles, declared_resources, entrypoint, grid_points
from cluster.ray_jobs import RayJobs, check_address
from cluster.room import Bundles, Room
from cluster.store import Store
from cluster.submit import STALLED_AFTER_S, submit
from library.config import to_yaml
from stillgrain import app
from workloads.run import read_config


def resolve(config: Path, words: Sequence[str]) -> str:
    return to_yaml(read_config(config, words))


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """A small project: a config, scenes that travel, and runs that do not."""
    top = tmp_path / "project"
    (top / "configs").mkdir(parents=True)
    (top / "scenes").mkdir()
    (top / "scenes" / "one.png").write_bytes(b"picture")
    (top / "runs").mkdir()
    (top / "runs" / "big.bin").write_bytes(b"x" * 1000)
    (top / ".gitignore").write_text("runs/\n")
    (top / ".rayignore").write_text("*.tmp\n")
    (top / "notes.tmp").write_text("mine")
    config = {
        "workload": "simulate",
        "dataset": {"kind": "synthetic", "scenes": "scenes", "sensor": {"kind": "parametric", "shot": [2e-3, 8e-3]}},
        "output": "/data/suite",
        "storage": "/data/runs",
    }
    (top / "configs" / "simulate.yaml").write_text(yaml.safe_dump(config))
    return top


def submitted(working_dir: Path, *words: str, **settings: object) -> dict[str, object]:
    """Of the job that came of the config."""
    folder = working_dir.parent / "queue"
    done = submit(
        [working_dir / "configs" / "simulate.yaml"],
        words,
        resolve=resolve,
        folder=folder,
        working_dir=working_dir,
        **settings,  # type: ignore[arg-type]
    )
    return jobqueue.show(done["jobs"][0]["job"], folder)


def trains(working_dir: Path, scenes: Path) -> None:
    """Its config is a training's from here on."""
    config = {
        "workload": "denoise",
        "name": "run",
        "storage": "/data/runs",
        "model": {"kind": "nafnet", "width": 4},
        "dataset": {"kind": "synthetic", "scenes": str(scenes), "held_out": 0.34, "crop": 32, "validation_crop": 168},
        "losses": {"l1": {"weight": 1.0}},
        "batch_size": 2,
        "steps": 20,
        "validate_every": 20,
        "checkpoint_every": 20,
    }
    (working_dir / "configs" / "simulate.yaml").write_text(yaml.safe_dump(config))


# --- what travels -----------------------------------------------------------------------------------------------------


def test_what_ignore_files_name_stays_here(working_dir: Path) -> None:
    found = contents(working_dir)
    assert set(found.sizes) == {".gitignore", ".rayignore", "configs/simulate.yaml", "scenes/one.png"}
    assert found.num_bytes == sum((working_dir / name).stat().st_size for name in found.sizes)


def test_the_same_files_are_the_same_zip_whenever_they_are_packed(working_dir: Path, tmp_path: Path) -> None:
    first = pack(contents(working_dir), tmp_path / "a")
    os.utime(working_dir / "scenes" / "one.png", (1e9, 1e9))
    second = pack(contents(working_dir), tmp_path / "b")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert zipfile.ZipFile(first).read("scenes/one.png") == b"picture"
    (working_dir / "scenes" / "one.png").write_bytes(b"other")
    assert pack(contents(working_dir), tmp_path / "a").name != first.name


def test_a_zip_holds_what_its_name_says_whoever_edits_meanwhile(
    working_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was edited between two readings was packed as edited, under the name of what it had been."""
    note = working_dir / "note.py"
    note.write_text("lr = 1")
    read = Path.read_bytes

    def read_and_edit(path: Path) -> bytes:
        content = read(path)
        if path == note:
            note.write_text("lr = 2")
        return content

    with monkeypatch.context() as editing:
        editing.setattr(Path, "read_bytes", read_and_edit)
        pack(contents(working_dir), tmp_path)
    for content in ("lr = 1", "lr = 2"):
        note.write_text(content)
        assert zipfile.ZipFile(pack(contents(working_dir), tmp_path)).read("note.py").decode() == content


def test_too_much_is_refused_with_the_names_of_the_biggest(working_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (working_dir / "movie.bin").write_bytes(b"x" * 5000)
    monkeypatch.setattr(package, "MAX_BYTES", 4000)
    with pytest.raises(SubmitError, match=r"the biggest: movie\.bin .*\.rayignore"):
        submitted(working_dir)


def test_a_link_that_leads_out_is_refused_and_one_that_stays_inside_is_not(working_dir: Path) -> None:
    (working_dir / "same.png").symlink_to("scenes/one.png")
    assert "same.png" in contents(working_dir).sizes
    (working_dir / "shadow").symlink_to("/etc/passwd")
    with pytest.raises(SubmitError, match="leads to /etc/passwd"):
        contents(working_dir)


def test_a_job_runs_what_was_there_when_it_was_submitted(working_dir: Path) -> None:
    job = submitted(working_dir)
    (working_dir / "scenes" / "one.png").write_bytes(b"edited since")
    assert zipfile.ZipFile(str(job["package"])).read("scenes/one.png") == b"picture"


def test_the_commit_and_whether_it_was_clean_are_kept(working_dir: Path) -> None:
    assert "git_commit" not in submitted(working_dir)["metadata"]
    git = ["git", "-C", str(working_dir), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    clean = submitted(working_dir, name="clean")["metadata"]
    assert (clean["git_commit"], clean["git_dirty"]) == (head, "no")
    (working_dir / "new.txt").write_text("new")
    assert submitted(working_dir, name="dirty")["metadata"]["git_dirty"] == "yes"


def test_the_resolved_config_goes_with_the_job_and_its_paths_are_true_there(working_dir: Path) -> None:
    job = submitted(working_dir, "dataset.crop=64", "dataset.held_out=0.5")
    resolved = yaml.safe_load(job["metadata"]["resolved"])
    assert resolved["dataset"]["crop"] == 64
    assert resolved["dataset"]["scenes"] == "scenes"
    assert resolved["output"] == "/data/suite"
    assert all(isinstance(value, str) for value in job["metadata"].values())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("output=suite", "output: suite is relative, and would be written into Ray's copy"),
        ("dataset.scenes=runs", "dataset.scenes: runs is relative, and does not travel"),
        ("output=~/suite", "the cluster has another home folder"),
        ("output=s3://key:hunter22@bucket/suite", "looks like a secret"),
    ],
)
def test_what_would_not_work_there_is_refused_here(working_dir: Path, word: str, why: str) -> None:
    with pytest.raises(SubmitError, match=why) as caught:
        submitted(working_dir, word)
    assert "hunter22" not in str(caught.value)
    with Store(working_dir.parent / "queue") as store:
        assert store.jobs() == []


def test_a_secret_of_this_environment_is_found_wherever_it_hides(
    working_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sesame-sesame")
    with pytest.raises(SubmitError, match="looks like a secret"):
        submitted(working_dir, "output=/data/sesame-sesame/suite")


def test_a_config_that_does_not_travel_is_refused(working_dir: Path) -> None:
    outside = working_dir.parent / "outside.yaml"
    ignored = working_dir / "runs" / "ignored.yaml"
    for file, why in ((outside, "it lies outside"), (ignored, "names it")):
        file.write_text((working_dir / "configs" / "simulate.yaml").read_text())
        with pytest.raises(SubmitError, match=why):
            submit([file], resolve=resolve, folder=working_dir.parent / "queue", working_dir=working_dir)


def test_a_folder_of_configs_is_submitted_whole_or_not_at_all(working_dir: Path) -> None:
    text = (working_dir / "configs" / "simulate.yaml").read_text()
    (working_dir / "configs" / "again.yaml").write_text(text)
    folder = working_dir.parent / "queue"

    def go() -> dict[str, object]:
        return submit([working_dir / "configs"], resolve=resolve, folder=folder, working_dir=working_dir, user="ada")

    assert [job["name"] for job in go()["jobs"]] == ["again", "simulate"]
    (working_dir / "configs" / "third.yaml").write_text(text)
    with pytest.raises(QueueError, match="two of one name"):
        go()
    assert [job["name"] for job in jobqueue.status(folder)["jobs"]] == ["again", "simulate"]


def test_what_scaling_asks_for_is_what_a_job_needs() -> None:
    assert declared_resources({"scaling": {"workers": 4, "cpus_per_worker": 2, "gpus_per_worker": 1}}) == {
        "CPU": 8.0,
        "GPU": 4.0,
    }
    assert declared_resources({"scaling": {"workers": 4, "min_workers": 2}}) == {"CPU": 2.0}
    assert declared_resources({"scaling": {"workers": 0, "min_workers": None}}) == {}
    assert declared_resources({}) == {}


def test_bundles_are_what_must_be_there_before_it_can_begin() -> None:
    training = {"workers": 4, "min_workers": None, "cpus_per_worker": 2, "gpus_per_worker": 1}
    assert declared_bundles({"scaling": training}) == Bundles(4, {"CPU": 2.0, "GPU": 1.0})
    assert declared_bundles({"scaling": {**training, "min_workers": 1}}) == Bundles(1, {"CPU": 2.0, "GPU": 1.0})
    actors = {"workers": 8, "cpus_per_worker": 2, "gpus_per_worker": 0}
    assert declared_bundles({"scaling": actors}) == Bundles(1, {"CPU": 2.0})
    assert declared_bundles({"scaling": {**training, "workers": 0}}) is None
    assert declared_bundles({}) is None


def test_what_the_cluster_has_no_room_for_is_refused_before_it_is_queued(working_dir: Path, scenes: Path) -> None:
    trains(working_dir, scenes)
    folder = working_dir.parent / "queue"
    with Store(folder) as store:
        store.note("room", Room((({"CPU": 1.0, "GPU": 0.0}, 3),)).to_json())
    submitted(working_dir)
    scaling = ("scaling.cpus_per_worker=2", "scaling.workers=2")
    with pytest.raises(SubmitError, match="needs 4 CPU in bundles of 2, and the largest node has 1"):
        submitted(working_dir, *scaling, name="big")
    assert submitted(working_dir, *scaling, name="big", allow_pending=True)["state"] == "queued"
    with Store(folder) as store:
        store.note("room", Room((({"CPU": 1.0, "GPU": 0.0}, 3),), grows=True).to_json())
    assert submitted(working_dir, *scaling, name="bigger")["state"] == "queued"


# --- a grid -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_words() -> None:
    assert grid_points([]) == [[]]
    assert grid_points(["a=1,2", "b=[x, y],{c: [1,2]}"]) == [
        ["a=1", "b=[x, y]"],
        ["a=1", "b={c: [1,2]}"],
        ["a=2", "b=[x, y]"],
        ["a=2", "b={c: [1,2]}"],
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [(["a"], "is not KEY=VALUE"), (["a=1,"], "is not"), (["a=1,1"], "twice"), (["a=1", "a=2"], "names a key twice")],
)
def test_what_is_no_grid_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(SubmitError, match=why):
        grid_points(words)


def test_each_job_of_a_grid_writes_into_a_folder_of_its_own(working_dir: Path) -> None:
    submitted(working_dir, grid=["dataset.crop=64,96", "seed=1,2"])
    folder = working_dir.parent / "queue"
    jobs = [jobqueue.show(row["job"], folder) for row in jobqueue.status(folder)["jobs"]]
    points = ["crop-64-seed-1", "crop-64-seed-2", "crop-96-seed-1", "crop-96-seed-2"]
    assert [job["name"] for job in jobs] == [f"simulate-{point}" for point in points]
    resolved = [yaml.safe_load(job["metadata"]["resolved"]) for job in jobs]
    assert [config["output"] for config in resolved] == [f"/data/suite/{point}" for point in points]
    assert [config["dataset"]["crop"] for config in resolved] == [64, 64, 96, 96]


def test_each_training_of_a_grid_is_a_run_of_its_own_name(working_dir: Path, scenes: Path) -> None:
    trains(working_dir, scenes)
    submitted(working_dir, grid=["optim.lr=1e-3,3e-3"])
    folder = working_dir.parent / "queue"
    for row in jobqueue.status(folder)["jobs"]:
        resolved = yaml.safe_load(jobqueue.show(row["job"], folder)["metadata"]["resolved"])
        assert resolved["name"] == row["name"] == f"run-lr-{resolved['optim']['lr']:.0e}".replace("e-0", "e-")


def test_a_relative_output_is_refused_in_a_grid_too(working_dir: Path) -> None:
    with pytest.raises(SubmitError, match="output: suite is relative"):
        submitted(working_dir, "output=suite", grid=["dataset.crop=64,96"])


# --- how it is started ------------------------------------------------------------------------------------------------


def test_the_entrypoint_finds_rays_python_without_a_path(tmp_path: Path) -> None:
    """Ray starts it through a shell with the head's PATH, where `python` was another one, without Ray."""
    (tmp_path / "stillgrain.py").write_text("import sys; print(sys.prefix, sys.argv[1:])")
    starter = (
        "import ray._raylet, subprocess, sys; subprocess.run(sys.argv[1], shell=True, env={'PATH': '/usr/bin:/bin'})"
    )
    words = ["name=a b", "notes=$(touch x)"]
    done = subprocess.run(
        [sys.executable, "-c", starter, entrypoint("a config.yaml", words)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == f"{sys.prefix} {['run', 'a config.yaml', *words]}", done.stderr
    assert not (tmp_path / "x").exists()


# --- where to ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265/", "http://localhost:8265", "http://[::1]:1", "https://a.b"]
)
def test_an_address_where_nobody_listens_in_is_taken(address: str) -> None:
    assert check_address(address) == address.rstrip("/")


@pytest.mark.parametrize(
    "address", ["http://head:8265", "http://10.0.0.5:8265", "http://localhost.evil.org", "http://127.0.0.1.evil.org:80"]
)
def test_nothing_is_sent_in_clear_to_another_machine_unless_told(address: str) -> None:
    with pytest.raises(SubmitError, match="anyone on the way reads the token"):
        RayJobs(address)
    assert check_address(address, allow_clear=True) == address


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://head:10001", "auto", "https://me:sesame@head"])
def test_what_is_no_dashboards_address_is_refused_without_repeating_a_password(address: str) -> None:
    with pytest.raises(SubmitError, match="address") as caught:
        check_address(address)
    assert "sesame" not in str(caught.value)


def test_a_ray_that_is_not_there_is_said_so_whatever_the_environment_says() -> None:
    """In a process of its own, since a process keeps the first token that it has read."""
    script = "from cluster.ray_jobs import RayJobs; RayJobs('http://127.0.0.1:9')"
    # Ray's own client would go to RAY_ADDRESS, and through the proxy.
    environment = {
        **os.environ,
        "RAY_ADDRESS": "http://10.0.0.5:8265",
        "http_proxy": "http://127.0.0.1:1",
        "RAY_AUTH_TOKEN": "5" * 64,
    }
    root = Path(package.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert "RayUnreachable: http://127.0.0.1:9: ConnectionError" in done.stderr
    assert "5" * 64 not in done.stderr


ASK = """
import sys
from cluster.errors import RayUnreachable
from cluster.ray_jobs import RayJobs
jobs = RayJobs(sys.argv[1])
print([jobs.nodes().grows for _ in range(3)])
for _ in range(5):
    try:
        print(repr(jobs.mark("stillgrain-1-1", "head")))
    except RayUnreachable as error:
        print(error)
"""


def test_what_ray_cannot_say_yet_is_neither_no_autoscaler_nor_a_log_that_stands_still() -> None:
    """In a process of its own, as above. The answers are such as Ray 2.60 gives."""
    nodes = [{"raylet": {"state": "ALIVE", "nodeId": "head", "resourcesTotal": {"CPU": 1.0}}}]
    report = {"autoscalerReport": {"activeNodes": {"gpu": 1}}}
    answers: dict[str, list[tuple[int, object]]] = {
        "/api/version": [(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "0"})] * 9,
        "/nodes": [(200, {"data": {"summary": nodes}})] * 3,
        "/api/cluster_status": [(200, {"data": {"clusterStatus": status}}) for status in (None, report, None)],
        "/api/v0/logs/file": [
            (500, "A file is not found at: /tmp/ray/session_latest/logs/job-driver-stillgrain-1-1.log"),
            (500, "Agent for node id: head doesn't exist."),
            (429, "Max number of in-progress requests=100 reached."),
            (200, ""),
            (200, "step 1"),
        ],
    }

    class Ray(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = answers[self.path.partition("?")[0]].pop(0)
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Ray) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            done = subprocess.run(
                [sys.executable, "-c", ASK, address],
                cwd=Path(package.__file__).parents[1],
                env={**os.environ, "RAY_AUTH_TOKEN": "5" * 64},
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            server.shutdown()
            thread.join()
    unreachable = f"{address}: RuntimeError: status code"
    assert done.stdout.splitlines() == [
        "[False, True, True]",
        "''",
        f"{unreachable} 500: Agent for node id: head doesn't exist.",
        f"{unreachable} 429: Max number of in-progress requests=100 reached.",
        "''",
        "'step 1'",
    ], done.stderr


def test_no_time_without_progress_is_refused_and_not_taken_for_a_day(working_dir: Path) -> None:
    config = str(working_dir / "configs" / "simulate.yaml")
    words = ["submit", config, "--working-dir", str(working_dir), "--queue", str(working_dir.parent / "queue")]
    refused = CliRunner().invoke(app, [*words, "--stalled-after", "0"])
    assert isinstance(refused.exception, SubmitError)
    assert str(refused.exception).startswith("stalled-after: 0 s is no time")
    assert CliRunner().invoke(app, words).exit_code == 0
    assert jobqueue.show(1, working_dir.parent / "queue")["stalled_after"] == STALLED_AFTER_S


def test_only_its_owner_reads_a_queue_and_it_is_all_json(working_dir: Path) -> None:
    job = submitted(working_dir)
    folder = working_dir.parent / "queue"
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert json.loads(json.dumps(jobqueue.status(folder)))["jobs"][0]["job"] == job["job"]
