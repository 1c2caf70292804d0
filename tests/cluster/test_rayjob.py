"""RayJobs for Kubernetes: what a config becomes, and what is refused before kubectl is called."""

from __future__ import annotations

import copy
import errno
import os
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.checks.kubernetes import manifest_faults
from cluster.checks.versions import read_versions
from cluster.errors import SubmitError
from cluster.rayjob import TEMPLATE, kubernetes_name, submit_rayjobs
from library.config import to_yaml
from stillgrain import app
from workloads.run import read_config

JOB = yaml.safe_load(TEMPLATE.read_text())
CONFIG = {
    "workload": "denoise",
    "name": "Some_run",
    "storage": "s3://bucket/runs",
    "model": {"kind": "nafnet", "width": 4},
    "dataset": {"kind": "synthetic", "scenes": "/data/scenes", "crop": 32, "validation_crop": 168},
    "losses": {"l1": {"weight": 1.0}},
    "batch_size": 8,
    "steps": 20,
    "validate_every": 20,
    "checkpoint_every": 20,
    "scaling": {"workers": 4, "min_workers": 2, "cpus_per_worker": 3, "gpus_per_worker": 1},
}


def resolve(config: Path, words: Sequence[str]) -> str:
    return to_yaml(read_config(config, words))


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    top = tmp_path / "project"
    top.mkdir()
    (top / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    return top


def manifests(working_dir: Path, *words: str, **settings: Any) -> list[dict[str, Any]]:
    settings = {"packages": "s3://bucket/packages", "dry_run": True, "upload": lambda *_: None, **settings}
    text = submit_rayjobs([working_dir / "train.yaml"], words, resolve=resolve, working_dir=working_dir, **settings)
    return list(yaml.safe_load_all(text))


def test_a_config_becomes_a_rayjob_that_kueue_sees_with_the_workers_it_asks_for(working_dir: Path) -> None:
    (job,) = manifests(working_dir, "seed=3", priority=5, retries=7)
    template = yaml.safe_load(TEMPLATE.read_text())
    assert (job["kind"], job["apiVersion"]) == ("RayJob", template["apiVersion"])
    assert job["metadata"]["name"] == "some-run"
    assert job["metadata"]["annotations"]["stillgrain/name"] == "Some_run"
    assert job["metadata"]["labels"] == {
        **template["metadata"]["labels"],
        "kueue.x-k8s.io/priority-class": "stillgrain-high",
    }
    spec = job["spec"]
    assert spec["backoffLimit"] == 7
    assert shlex.split(spec["entrypoint"]) == ["python", "-m", "stillgrain", "run", "train.yaml", "seed=3"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"].startswith("s3://bucket/packages/")
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 4, 4)
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]["nvidia.com/gpu"]) == ("3", "1")
    assert resources["limits"]["cpu"] == "3"
    assert spec["rayClusterSpec"]["headGroupSpec"] == template["spec"]["rayClusterSpec"]["headGroupSpec"]


def test_a_grid_gives_a_rayjob_for_each_point_and_no_worker_where_none_is_asked_for(working_dir: Path) -> None:
    jobs = manifests(working_dir, "scaling={workers: 0}", grid=["optim.lr=1e-3,3e-3"], priority=-1)
    assert [job["metadata"]["name"] for job in jobs] == ["some-run-lr-1e-3", "some-run-lr-3e-3"]
    assert [job["spec"]["rayClusterSpec"]["workerGroupSpecs"] for job in jobs] == [[], []]
    assert {job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] for job in jobs} == {"stillgrain-low"}
    assert all("name=Some_run-lr-" in job["spec"]["entrypoint"] for job in jobs)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ((), {"grid": ["optim.lr=1e-3,3e-3"], "labels": ["night"], "priority": 5}),
        (("scaling={workers: 0}",), {"name": "3d"}),
        # More than the template's workers have.
        (("scaling={workers: 1, cpus_per_worker: 16}",), {"retries": 0, "labels": ["x" * 57]}),
    ],
)
def test_what_is_written_has_no_fault_that_the_check_of_manifests_finds(
    working_dir: Path, words: tuple[str, ...], settings: dict[str, Any]
) -> None:
    shipped = [d for file in sorted(TEMPLATE.parent.glob("*.yaml")) for d in yaml.safe_load_all(file.read_text())]
    written = manifests(working_dir, *words, **settings)
    documents = [(f"{d['kind']}/{d['metadata']['name']}", d) for d in (*shipped, *written)]
    versions = read_versions(TEMPLATE.parents[2])
    assert versions is not None
    assert list(manifest_faults(documents, versions)) == []


@given(name=st.text(max_size=80))
def test_whatever_a_job_is_called_kubernetes_takes_its_name(name: str) -> None:
    made = kubernetes_name(name)
    job = copy.deepcopy(JOB)
    job["metadata"]["name"] = made
    assert list(manifest_faults([("f", job)], None)) == []
    assert kubernetes_name(made) == made


def test_names_are_what_kubernetes_takes_and_long_ones_stay_apart() -> None:
    assert kubernetes_name("A.b_c") == "a-b-c"
    # KubeRay makes names of services from them, which begin with a letter.
    assert [kubernetes_name(name) for name in ("3d", "_", "x")] == ["job-3d", "job", "x"]
    long, other = kubernetes_name("x" * 80 + "1"), kubernetes_name("x" * 80 + "2")
    assert long != other
    assert max(len(long), len(other)) <= 47


@pytest.mark.parametrize(
    ("words", "settings", "why"),
    [
        ((), {"after": ["first"]}, "Kueue lets no job wait for another"),
        ((), {"packages": "packages"}, "no place that a pod can read"),
        ((), {"labels": ["night", "x" * 58]}, "label: 'xxx.* up to 57"),
        ((), {"labels": ["in the night"]}, "label: 'in the night' may hold"),
        (("notes=$(id)",), {}, "one of the shells"),
        ((), {"template": "/nowhere.yaml"}, "template: /nowhere.yaml: FileNotFoundError"),
        (("storage=runs",), {}, "would be written into Ray's copy"),
    ],
)
def test_what_would_not_run_there_is_refused_here(
    working_dir: Path, words: tuple[str, ...], settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(SubmitError, match=why):
        manifests(working_dir, *words, **settings)


def test_what_is_created_is_what_a_dry_run_prints_and_the_package_goes_first(
    working_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given.yaml"
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f'#!/bin/sh\n[ -e {tmp_path}/uploaded ] && [ "$*" = "create -f -" ] && cat > {given}\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kubectl.parent}:/usr/bin:/bin")
    uris = []

    def upload(file: Path, uri: str) -> None:
        uris.append(uri)
        (tmp_path / "uploaded").write_bytes(file.read_bytes())

    created = manifests(working_dir, dry_run=False, upload=upload)
    assert list(yaml.safe_load_all(given.read_text())) == created == manifests(working_dir)
    assert yaml.safe_load(created[0]["spec"]["runtimeEnvYAML"]) == {"working_dir": uris[0]}
    kubectl.write_text("#!/bin/sh\necho 'error: no such cluster' >&2; exit 1\n")
    with pytest.raises(SubmitError, match="kubectl create: error: no such cluster"):
        manifests(working_dir, dry_run=False, upload=upload)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SubmitError, match="kubectl is not installed here"):
        manifests(working_dir, dry_run=False, upload=upload)


KUBERNETES = """#!/bin/sh
# `kubectl` of a cluster that keeps names in a folder: `apply` of one that is there is a success that starts nothing.
status=0
for name in $(sed -n 's/^  name: //p'); do
  if [ ! -e {jobs}/$name ]; then echo "rayjob.ray.io/$name created"; touch {jobs}/$name
  elif [ "$1" = apply ]; then echo "rayjob.ray.io/$name unchanged"
  else
    echo "Error from server (AlreadyExists): rayjobs.ray.io \\"$name\\" already exists" >&2
    status=1
  fi
done
exit $status
"""


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the jobs that it has."""
    jobs, kubectl = tmp_path / "jobs", tmp_path / "bin" / "kubectl"
    jobs.mkdir()
    kubectl.parent.mkdir()
    kubectl.write_text(KUBERNETES.format(jobs=jobs))
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kubectl.parent}:/usr/bin:/bin")
    return jobs


def test_a_name_that_kubernetes_has_is_refused_with_the_remedy(working_dir: Path, kubernetes: Path) -> None:
    """`kubectl apply` of a job that had ended said `unchanged`, and nothing ran."""
    manifests(working_dir, dry_run=False)
    with pytest.raises(SubmitError, match=r"has a RayJob some-run already.* --namespace stillgrain some-run$"):
        manifests(working_dir, dry_run=False)
    (kubernetes / "some-run-lr-1e-3").touch()
    with pytest.raises(SubmitError, match=r"a RayJob some-run-lr-1e-3 already.*; submitted: some-run-lr-3e-3$"):
        manifests(working_dir, dry_run=False, grid=["optim.lr=1e-3,3e-3"])
    assert (kubernetes / "some-run-lr-3e-3").exists()


def test_a_package_is_there_whole_or_not_at_all_and_is_sent_once(
    working_dir: Path, kubernetes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    command = ["submit", str(working_dir / "train.yaml"), "--backend=kuberay", f"--packages={packages}"]
    command += [f"--working-dir={working_dir}"]
    replace = os.replace

    def fail_there(source: Path, target: Path) -> None:
        if Path(target).parent == packages:
            raise OSError(errno.ENOSPC, "the disk is full")
        replace(source, target)

    with monkeypatch.context() as full:
        full.setattr(os, "replace", fail_there)
        assert CliRunner().invoke(app, command).exit_code != 0
    assert list(packages.iterdir()) == list(kubernetes.iterdir()) == []
    assert CliRunner().invoke(app, command).exit_code == 0
    (package,) = packages.iterdir()
    with zipfile.ZipFile(package) as archive:
        assert archive.read("train.yaml") == (working_dir / "train.yaml").read_bytes()
    before = package.stat()
    assert CliRunner().invoke(app, [*command, "--name=another"]).exit_code == 0
    assert (package.stat().st_ino, package.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
