"""Configs -> RayJobs on Kubernetes, which Kueue starts when there is room: no queue of ours, and no dispatcher.

    stillgrain submit workloads/configs/denoise_rawnind.yaml storage=s3://bucket/runs --backend kuberay \\
        --packages s3://bucket/packages --priority 5 --dry-run

Everything that is not in a config is taken from a template, cluster/kuberay/rayjob.yaml or a copy of it: image,
namespace, service account, the sizes of the head.
"""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.checks.kuberay import LONGEST_NAMES
from cluster.checks.kueue import PRIORITY, QUEUE
from cluster.errors import SubmitError
from cluster.package import pack
from cluster.prepare import Batch, Prepared, Resolve, prepare

TEMPLATE = Path(__file__).parent / "kuberay" / "rayjob.yaml"
Upload = Callable[[Path, str], object]
"""Puts a file of this machine where a URI says, whole or not at all. What has that name already has that content."""

_LONGEST_NAME = LONGEST_NAMES["RayJob"]
# As a part of a label's name; with `label-` in front it has at most 63 characters, and ends as Kubernetes wants it.
_LABEL = re.compile(r"[A-Za-z0-9_.-]{0,56}[A-Za-z0-9]")
# What goes unharmed through the submitter's shell, Ray's command line and the head's shell.
_PLAIN = re.compile(r"^[A-Za-z0-9_@%+=:,./\[\]{} -]*$")


def submit_rayjobs(
    configs: Sequence[str | Path],
    words: Sequence[str] = (),
    *,
    resolve: Resolve,
    packages: str,
    upload: Upload,
    working_dir: str | Path = ".",
    name: str | None = None,
    priority: int = 0,
    after: Sequence[str] = (),
    retries: int = 3,
    grid: Sequence[str] = (),
    labels: Sequence[str] = (),
    template: str | Path = TEMPLATE,
    dry_run: bool = False,
) -> str:
    """Create a RayJob for each config with kubectl; returns the manifests as YAML.

    packages  folder for packed working directories that every pod can read: s3://bucket/packages
    upload    see `Upload`
    priority  above 0 stillgrain-high, below 0 stillgrain-low: Kueue has classes, not numbers
    after     refused: Kueue knows no order but that of its priorities
    retries   each with a new Ray cluster; KubeRay tries again after a user's error too
    labels    of the RayJobs, as `stillgrain/label-X`; Kueue limits by its queues
    template  YAML of one RayJob
    dry_run   only return them
    raises    SubmitError: also where kubectl is missing, or refuses, and for a name that a RayJob has, ended or not
    """
    if not dry_run and shutil.which("kubectl") is None:
        raise SubmitError("kubectl is not installed here: install it, or say --dry-run > jobs.yaml and create that")
    if "://" not in packages and not Path(packages).is_absolute():
        raise SubmitError(f"packages: {packages} is no place that a pod can read: give s3://bucket/packages")
    if after:
        raise SubmitError(
            "after: Kueue lets no job wait for another: submit it when that one has ended, or leave out --backend"
        )
    if retries < 0:
        raise SubmitError(f"retries: {retries} is below 0")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise SubmitError(
                f"label: '{label}' may hold letters, digits, dot, dash and underscore, up to 57, and ends with one of "
                "the first two: Kubernetes takes no other"
            )
    batch = prepare(configs, words, resolve=resolve, working_dir=working_dir, name=name, grid=grid)
    blank = _read_template(template)
    with tempfile.TemporaryDirectory() as folder:
        package = pack(batch.travels, folder)
        uri = f"{packages.rstrip('/')}/{package.name}"
        manifests = [_manifest(job, batch, blank, uri, priority, retries, labels) for job in batch.jobs]
        _check_names(manifests)
        text = yaml.safe_dump_all(manifests, sort_keys=False, allow_unicode=True, width=120)
        if not dry_run:
            upload(package, uri)
            _create(text, manifests[0]["metadata"].get("namespace", "default"))
    return text


def _manifest(
    job: Prepared,
    batch: Batch,
    blank: Mapping[str, Any],
    package: str,
    priority: int,
    retries: int,
    words: Sequence[str],
) -> dict[str, Any]:
    made = copy.deepcopy(dict(blank))
    labels = made["metadata"]["labels"]
    labels[PRIORITY] = f"stillgrain-{'high' if priority > 0 else 'low' if priority < 0 else 'normal'}"
    labels |= {f"stillgrain/label-{word}": "yes" for word in words}
    made["metadata"]["name"] = kubernetes_name(job.name)
    made["metadata"]["annotations"] = {
        "stillgrain/name": job.name,
        "stillgrain/config": job.config,
        "stillgrain/resolved": job.resolved,
        **{f"stillgrain/{key}": value for key, value in batch.commit.items()},
    }
    spec = made["spec"]
    spec["backoffLimit"] = retries
    spec["entrypoint"] = _entrypoint(job)
    # Ray takes a path only with its scheme.
    spec["runtimeEnvYAML"] = yaml.safe_dump({"working_dir": package if "://" in package else f"file://{package}"})
    spec["rayClusterSpec"]["workerGroupSpecs"] = _workers(job, spec["rayClusterSpec"]["workerGroupSpecs"])
    return made


def kubernetes_name(name: str) -> str:
    """A job's name as Kubernetes allows it: small letters, digits, dashes, a letter first as in names of services, no
    longer than KubeRay's pods can bear."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"job-{plain}".rstrip("-")
    if len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[: _LONGEST_NAME - 9].rstrip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _entrypoint(job: Prepared) -> str:
    for word in (job.config, *job.words):
        if not _PLAIN.match(word):
            raise SubmitError(
                f"{job.config}: '{word}' holds what one of the shells on the way to a pod would read as its own: put "
                "it into the config"
            )
    return shlex.join(["python", "-m", "stillgrain", "run", job.config, *job.words])


def _workers(job: Prepared, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A pod for each worker, with what one needs. A config that says nothing gets the template's; one that trains in
    its own process none."""
    scaling = job.settings.get("scaling")
    if not isinstance(scaling, Mapping):
        return groups
    workers = int(scaling.get("workers", 1))
    if workers == 0:
        return []
    group = groups[0]
    group["replicas"] = group["maxReplicas"] = workers
    group["minReplicas"] = scaling.get("min_workers") or workers
    resources = group["template"]["spec"]["containers"][0].setdefault("resources", {})
    requests, limits = (resources.setdefault(kind, {}) for kind in ("requests", "limits"))
    requests["cpu"] = str(scaling.get("cpus_per_worker", 1))
    if "cpu" in limits:
        # Ray counts these, and Kubernetes refuses a pod that asks for more.
        limits["cpu"] = requests["cpu"]
    gpus = scaling.get("gpus_per_worker", 0)
    if gpus:
        # A share of a GPU is Ray's to give, not Kubernetes'.
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(max(1, int(gpus)))
    return [group]


def _check_names(manifests: Sequence[Mapping[str, Any]]) -> None:
    names: dict[str, str] = {}
    for manifest in manifests:
        own = manifest["metadata"]["annotations"]["stillgrain/name"]
        other = names.setdefault(manifest["metadata"]["name"], own)
        if other != own:
            raise SubmitError(
                f"name: '{own}' and '{other}' are both {manifest['metadata']['name']} in Kubernetes: rename one"
            )


def _read_template(file: str | Path) -> dict[str, Any]:
    try:
        made = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        if made["kind"] != "RayJob" or not made["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            raise ValueError("it is no RayJob with a group of workers")
        if QUEUE not in made["metadata"]["labels"]:
            raise ValueError(f"without the label {QUEUE} Kueue does not see it")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SubmitError(
            f"template: {file}: {type(error).__name__}: {error}: give a copy of {TEMPLATE} with your changes"
        ) from None
    return made


def _create(text: str, namespace: str) -> None:
    # Not `apply`, which of a job that is there changes nothing, or takes away the start that Kueue gave it, and calls
    # either a success.
    try:
        done = subprocess.run(["kubectl", "create", "-f", "-"], input=text, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SubmitError(f"kubectl: {error}") from None
    if done.returncode:
        there = re.findall(r'"([^"]+)" already exists', done.stderr)
        if there:
            made = re.findall(r"/(\S+) created", done.stdout)
            raise SubmitError(
                f"name: Kubernetes has a RayJob {', '.join(there)} already, which may have ended, and leaves it as it "
                f"is: give another name, or kubectl delete rayjob --namespace {namespace} {' '.join(there)}"
                + (f"; submitted: {', '.join(made)}" if made else "")
            )
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SubmitError(f"kubectl create: {last}; say --dry-run to see what it was given")
