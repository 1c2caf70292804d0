"""The manifests for Kubernetes: what is shipped fits together, and each kind of fault that is planted is found."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.checks.kubernetes import manifest_faults, quantity
from cluster.checks.versions import Versions

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
VERSIONS = Versions("2.60.0", "2.13.0")
Documents = dict[str, dict[str, Any]]


@pytest.fixture
def documents() -> Documents:
    """All that is shipped, by `Kind/name`."""
    found = [d for file in sorted(FOLDER.glob("*.yaml")) for d in yaml.safe_load_all(file.read_text())]
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in found}


def faults_of(documents: Documents) -> list[tuple[str, str]]:
    return [(f"{f.file}: {f.key}", f.message) for f in manifest_faults(list(documents.items()), VERSIONS)]


def test_the_shipped_manifests_are_whole_and_have_no_faults(documents: Documents) -> None:
    assert faults_of(documents) == []
    kinds = {name.partition("/")[0] for name in documents}
    assert {"RayCluster", "RayJob", "ClusterQueue", "LocalQueue", "ResourceFlavor", "WorkloadPriorityClass"} <= kinds


JOB, CLUSTER, QUEUE = "RayJob/denoise-demo", "RayCluster/stillgrain", "ClusterQueue/stillgrain"


def at(documents: Documents, name: str, *path: str | int) -> Any:
    value: Any = documents[name]
    for step in path:
        value = value[step]
    return value


def head_of(documents: Documents) -> dict[str, Any]:
    return at(documents, CLUSTER, "spec", "headGroupSpec")


def container_of(documents: Documents) -> dict[str, Any]:
    return at(documents, CLUSTER, "spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0)


GROUPS = "spec.workerGroupSpecs[0]"
CONTAINER = f"{GROUPS}.template.spec.containers[0]"
FAULTS: dict[str, tuple[Callable[[Documents], object], str, str]] = {
    # name: plant it, where it is found, a part of the message
    "unknown kind": (lambda d: d[JOB].update(kind="RayJobs"), f"{JOB}: kind", "did you mean 'ray.io/v1 RayJob'?"),
    "old version": (lambda d: d[JOB].update(apiVersion="ray.io/v1alpha1"), f"{JOB}: kind", "is unknown"),
    "unknown key": (
        lambda d: d[JOB]["spec"].update(backofLimit=1),
        f"{JOB}: spec.backofLimit",
        "did you mean 'backoffLimit'?",
    ),
    "unknown key of a container": (
        lambda d: container_of(d).update(imagePullPolice="Always"),
        f"{CLUSTER}: {CONTAINER}.imagePullPolice",
        "did you mean 'imagePullPolicy'?",
    ),
    "missing key": (
        lambda d: at(d, CLUSTER, "spec", "workerGroupSpecs", 0).pop("groupName"),
        f"{CLUSTER}: {GROUPS}.groupName",
        "must be there",
    ),
    "number for a text": (
        lambda d: head_of(d)["rayStartParams"].update({"num-cpus": 0}),
        f"{CLUSTER}: spec.headGroupSpec.rayStartParams.num-cpus",
        "needs quotes",
    ),
    "text for a number": (
        lambda d: d[JOB]["spec"].update(backoffLimit="3"),
        f"{JOB}: spec.backoffLimit",
        "whole number",
    ),
    "no quantity": (
        lambda d: container_of(d)["resources"]["requests"].update(memory="32 GB"),
        f"{CLUSTER}: {CONTAINER}.resources.requests.memory",
        "500m, 8 or 16Gi",
    ),
    "none of the choices": (
        lambda d: d[QUEUE]["spec"].update(queueingStrategy="FIFO"),
        f"{QUEUE}: spec.queueingStrategy",
        "one of StrictFIFO, BestEffortFIFO",
    ),
    "no auth": (
        lambda d: d[CLUSTER]["spec"].pop("authOptions"),
        f"{CLUSTER}: spec.authOptions.mode",
        "runs code in it",
    ),
    "auth off": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "authOptions").update(mode="disabled"),
        f"{JOB}: spec.rayClusterSpec.authOptions.mode",
        "is not token",
    ),
    "auth off in a pod": (
        lambda d: container_of(d).update(env=[{"name": "RAY_AUTH_MODE", "value": "disabled"}]),
        f"{CLUSTER}: {CONTAINER}.env[0]",
        "overrides authOptions",
    ),
    "token in clear": (
        lambda d: container_of(d).update(env=[{"name": "RAY_AUTH_TOKEN", "value": "hunter2"}]),
        f"{CLUSTER}: {CONTAINER}.env[0]",
        "is a token in clear",
    ),
    "long token in clear": (
        lambda d: container_of(d).update(env=[{"name": "SOMETHING", "value": "3f" * 32}]),
        f"{CLUSTER}: {CONTAINER}.env[0].value",
        "holds a token or a key in clear",
    ),
    "token as a secret in a file": (
        lambda d: d.update(
            {
                "Secret/t": {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": "t"},
                    "stringData": {"auth_token": "hunter2"},
                }
            }
        ),
        "Secret/t: data.auth_token",
        "is a token in a file",
    ),
    "token for the job": (
        lambda d: d[JOB]["spec"].update(runtimeEnvYAML=f"env_vars: {{KEY: {'3f' * 32}}}"),
        f"{JOB}: spec.runtimeEnvYAML",
        "holds a token or a key in clear",
    ),
    "another Ray": (
        lambda d: d[CLUSTER]["spec"].update(rayVersion="2.59.0"),
        f"{CLUSTER}: spec.rayVersion",
        "is 2.59.0, and constraints.txt pins ray 2.60.0",
    ),
    "another image": (
        lambda d: container_of(d).update(image="here/stillgrain:py3.11-ray2.59.0-torch2.13.0"),
        f"{CLUSTER}: {CONTAINER}.image",
        "the image has ray 2.59.0",
    ),
    "another image of the submitter": (
        lambda d: at(d, JOB, "spec", "submitterPodTemplate", "spec", "containers", 0).update(image="rayproject/ray"),
        f"{JOB}: spec.submitterPodTemplate.spec.containers[0].image",
        "has no tag",
    ),
    "head trains": (
        lambda d: head_of(d)["rayStartParams"].pop("num-cpus"),
        f"{CLUSTER}: spec.headGroupSpec.rayStartParams.num-cpus",
        "trainings run beside the dashboard",
    ),
    "no job slots": (
        lambda d: head_of(d)["rayStartParams"].update(resources='"{\\"tune_driver\\": 8}"'),
        f"{CLUSTER}: spec.headGroupSpec.rayStartParams.resources",
        "the head has no job_slot",
    ),
    "dashboard on the street": (
        lambda d: head_of(d).update(serviceType="LoadBalancer"),
        f"{CLUSTER}: spec.headGroupSpec.serviceType",
        "shows Ray's ports outside of the cluster",
    ),
    "dashboard by ingress": (
        lambda d: head_of(d).update(enableIngress=True),
        f"{CLUSTER}: spec.headGroupSpec.enableIngress",
        "shows the dashboard",
    ),
    "least over most": (
        lambda d: at(d, CLUSTER, "spec", "workerGroupSpecs", 0).update(minReplicas=9, replicas=9, maxReplicas=8),
        f"{CLUSTER}: {GROUPS}.minReplicas",
        "is 9, and maxReplicas 8",
    ),
    "request over limit": (
        lambda d: container_of(d)["resources"]["requests"].update(cpu="20"),
        f"{CLUSTER}: {CONTAINER}.resources.requests.cpu",
        "is 20, and the limit 16",
    ),
    "privileged": (
        lambda d: container_of(d)["securityContext"].update(privileged=True),
        f"{CLUSTER}: {CONTAINER}.securityContext.privileged",
        "the owner of the machine",
    ),
    "cluster that stays": (
        lambda d: d[JOB]["spec"].update(shutdownAfterJobFinishes=False),
        f"{JOB}: spec.shutdownAfterJobFinishes",
        "Kueue admits no such job",
    ),
    "not suspended": (lambda d: d[JOB]["spec"].pop("suspend"), f"{JOB}: spec.suspend", "before Kueue has room"),
    "autoscaling in the queue": (
        lambda d: d[JOB]["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=True),
        f"{JOB}: spec.rayClusterSpec.enableInTreeAutoscaling",
        "takes more than Kueue has given",
    ),
    "no entrypoint": (lambda d: d[JOB]["spec"].pop("entrypoint"), f"{JOB}: spec.entrypoint", "nothing would run"),
    "resources that are no JSON": (
        lambda d: d[JOB]["spec"].update(entrypointResources="job_slot: 1"),
        f"{JOB}: spec.entrypointResources",
        "is not JSON",
    ),
    "working directory of this machine": (
        lambda d: d[JOB]["spec"].update(runtimeEnvYAML="working_dir: ."),
        f"{JOB}: spec.runtimeEnvYAML.working_dir",
        "pods do not see this machine",
    ),
    "no such queue": (
        lambda d: d[JOB]["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "stilgrain"}),
        f"{JOB}: metadata.labels.kueue.x-k8s.io/queue-name",
        "did you mean 'stillgrain'?",
    ),
    "no such priority": (
        lambda d: d[JOB]["metadata"]["labels"].update({"kueue.x-k8s.io/priority-class": "stillgrain-hi"}),
        f"{JOB}: metadata.labels.kueue.x-k8s.io/priority-class",
        "did you mean 'stillgrain-high'?",
    ),
    "no such cluster queue": (
        lambda d: d["LocalQueue/stillgrain"]["spec"].update(clusterQueue="other"),
        "LocalQueue/stillgrain: spec.clusterQueue",
        "there is no ClusterQueue 'other'",
    ),
    "no such flavor": (
        lambda d: d.pop("ResourceFlavor/stillgrain-gpu"),
        f"{QUEUE}: spec.resourceGroups",
        "there is no ResourceFlavor 'stillgrain-gpu'",
    ),
    "quotas of other resources": (
        lambda d: at(d, QUEUE, "spec", "resourceGroups", 0, "flavors", 0, "resources").pop(),
        f"{QUEUE}: spec.resourceGroups[0].flavors",
        "must have those of cpu, memory, nvidia.com/gpu",
    ),
    "more than the queue has": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "workerGroupSpecs", 0).update(
            replicas=50, minReplicas=50, maxReplicas=50
        ),
        f"{JOB}: spec.rayClusterSpec",
        "asks for 202.5 cpu in all, and the queue has 192",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_nothing_else(name: str, documents: Documents) -> None:
    plant, where, message = FAULTS[name]
    documents = copy.deepcopy(documents)
    plant(documents)
    faults = faults_of(documents)
    # One that is too large is so for every resource.
    assert {place for place, _ in faults} == {where}, faults
    assert message in faults[0][1]
    assert "3f3f" not in str(faults)


@pytest.mark.parametrize(
    "document", [None, [], "text", {}, {"kind": "RayJob"}, {"apiVersion": "ray.io/v1", "kind": "RayJob"}]
)
def test_what_is_no_manifest_is_said_and_not_stumbled_over(document: object) -> None:
    assert manifest_faults([("f", document)], VERSIONS)
    broken = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": document, "spec": document}
    assert manifest_faults([("f", broken)], VERSIONS)


def test_quantities_are_those_of_kubernetes() -> None:
    said = {"500m": 0.5, "16Gi": 16 * 2**30, "1k": 1000, "1e3": 1000, 8: 8, "0": 0, "2.5": 2.5, "1E": 1e18, "1Ki": 1024}
    assert {text: quantity(text) for text in said} == said
    assert [quantity(text) for text in ("", "Gi", "1 Gi", "1GB", True, None, "-")] == [None] * 7


def test_a_commit_and_an_images_digest_are_no_secrets(documents: Documents) -> None:
    documents[JOB]["metadata"]["annotations"] = {"stillgrain/git_commit": "3f" * 20}
    container_of(documents)["image"] += "@sha256:" + "3f" * 32
    assert faults_of(documents) == []


def test_what_stands_in_front_of_ray_lets_its_own_pods_in(documents: Documents) -> None:
    """The head, the workers and the submitter all have the label that the policy lets through."""
    (label,) = documents["NetworkPolicy/stillgrain"]["spec"]["podSelector"]["matchLabels"].items()
    job, cluster = documents[JOB]["spec"], documents[CLUSTER]["spec"]
    templates = [job["submitterPodTemplate"]]
    for spec in (job["rayClusterSpec"], cluster):
        templates += [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    assert len(templates) == 6
    assert all(label in template["metadata"]["labels"].items() for template in templates)


def test_kubectl_reads_the_manifests_too(documents: Documents) -> None:
    """Its own parser of YAML, which knows no yes and no octal numbers; it needs no cluster for that."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl, which is not installed here")
    for file in sorted(FOLDER.glob("*.yaml")):
        done = subprocess.run(
            ["kubectl", "patch", "--local", "--type=json", "--patch=[]", "--output=json", f"--filename={file}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        objects = json.loads(f"[{done.stdout.replace(chr(10) + '{', chr(10) + ',{')}]")
        assert objects == list(yaml.safe_load_all(file.read_text()))
