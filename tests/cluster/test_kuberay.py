"""The manifests for Kubernetes: what is shipped fits together, and each kind of fault that is planted is found."""

from __future__ import annotations

import copy
import importlib.resources
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.checks.kubernetes import manifest_faults
from cluster.checks.pods import quantity
from cluster.checks.versions import Versions

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
FIELDS = yaml.safe_load((FOLDER.parent / "checks" / "kubernetes_fields.yaml").read_text())
VERSIONS = Versions("2.60.0", "2.13.0")
Documents = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def shipped() -> Documents:
    """All of them, by `Kind/name`."""
    found = [d for file in sorted(FOLDER.glob("*.yaml")) for d in yaml.safe_load_all(file.read_text())]
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in found}


@pytest.fixture
def documents(shipped: Documents) -> Documents:
    """To plant faults in."""
    return copy.deepcopy(shipped)


def faults_of(documents: Documents) -> list[tuple[str, str]]:
    return [(f"{f.file}: {f.key}", f.message) for f in manifest_faults(list(documents.items()), VERSIONS)]


def test_the_shipped_manifests_are_whole_and_have_no_faults(documents: Documents) -> None:
    assert faults_of(documents) == []
    kinds = {name.partition("/")[0] for name in documents}
    assert {"RayCluster", "RayJob", "ClusterQueue", "LocalQueue", "ResourceFlavor", "WorkloadPriorityClass"} <= kinds


JOB, CLUSTER, QUEUE = "RayJob/denoise-demo", "RayCluster/stillgrain", "ClusterQueue/stillgrain"
FLAVOR, GPUS = "ResourceFlavor/stillgrain-cpu", "ResourceFlavor/stillgrain-gpu"
LABEL = "kueue.x-k8s.io/queue-name"


def at(documents: Documents, name: str, *path: str | int) -> Any:
    value: Any = documents[name]
    for step in path:
        value = value[step]
    return value


def head_of(documents: Documents) -> dict[str, Any]:
    return at(documents, CLUSTER, "spec", "headGroupSpec")


def container_of(documents: Documents) -> dict[str, Any]:
    return at(documents, CLUSTER, "spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0)


def worker_of(documents: Documents) -> dict[str, Any]:
    return at(documents, CLUSTER, "spec", "workerGroupSpecs", 0)


def quota_of(documents: Documents) -> dict[str, Any]:
    return at(documents, QUEUE, "spec", "resourceGroups", 0, "flavors", 0, "resources", 0)


def groups_of(count: int) -> Callable[[Documents], object]:
    """As many groups of workers in the job, each with a name of its own and no pod."""

    def plant(documents: Documents) -> None:
        spec = documents[JOB]["spec"]["rayClusterSpec"]
        (first,) = spec["workerGroupSpecs"]
        sizes = {"replicas": 0, "minReplicas": 0, "maxReplicas": 0}
        spec["workerGroupSpecs"] = [{**first, **sizes, "groupName": f"w{i}"} for i in range(count)]

    return plant


def selects(**more: Any) -> Callable[[Documents], object]:
    """A job on the cluster that is there, as KubeRay takes it, and what is wrong with it."""

    def plant(documents: Documents) -> None:
        job = documents[JOB]
        for name in ("suspend", "backoffLimit", "rayClusterSpec", "submitterPodTemplate"):
            del job["spec"][name]
        del job["metadata"]["labels"][LABEL]
        job["spec"] |= {"clusterSelector": {"ray.io/cluster": "stillgrain"}, **more}

    return plant


def wide(groups: int, resources: int, flavors: int) -> Callable[[Documents], object]:
    """A queue of so many groups, each with so many resources and flavors of its own."""

    def plant(documents: Documents) -> None:
        del documents["LocalQueue/stillgrain"]
        made = []
        for group in range(groups):
            covered = [f"example.com/r{group}-{i}" for i in range(resources)]
            quotas = [{"name": name, "nominalQuota": 1} for name in covered]
            names = [f"f{group}-{i}" for i in range(flavors)]
            documents.update({name: {**documents[FLAVOR], "metadata": {"name": name}} for name in names})
            of = [{"name": name, "resources": quotas} for name in names]
            made.append({"coveredResources": covered, "flavors": of})
        documents[QUEUE]["spec"]["resourceGroups"] = made

    return plant


def deletes(policy: str, plant: Callable[[Documents], object]) -> Callable[[Documents], object]:
    def both(documents: Documents) -> None:
        plant(documents)
        strategy = {"onSuccess": {"policy": policy}, "onFailure": {"policy": "DeleteSelf"}}
        documents[JOB]["spec"]["deletionStrategy"] = strategy

    return both


def grows(documents: Documents) -> None:
    """A job's cluster, outside of the queue."""
    del documents[JOB]["metadata"]["labels"][LABEL]
    documents[JOB]["spec"]["rayClusterSpec"] |= {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2"},
    }


def sidecar(documents: Documents, *without: str) -> None:
    documents[JOB]["spec"]["submissionMode"] = "SidecarMode"
    for name in without:
        del documents[JOB]["spec"][name]


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
        lambda d: d[JOB]["spec"]["rayClusterSpec"].update(
            enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"}
        ),
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


# What KubeRay's operator and its schemas refuse (validation.go of 1.7).
FAULTS |= {
    "name that begins with a digit": (lambda d: d[JOB]["metadata"].update(name="3d"), f"{JOB}: metadata.name", "first"),
    "long name of a job": (lambda d: d[JOB]["metadata"].update(name="x" * 48), f"{JOB}: metadata.name", "more than 47"),
    "long name of a cluster": (
        lambda d: d[CLUSTER]["metadata"].update(name="x" * 54),
        f"{CLUSTER}: metadata.name",
        "more than 53",
    ),
    "more than 32 bits": (
        lambda d: worker_of(d).update(maxReplicas=2**31),
        f"{CLUSTER}: {GROUPS}.maxReplicas",
        "whole",
    ),
    "no time at all": (
        lambda d: d[JOB]["spec"].update(activeDeadlineSeconds=0),
        f"{JOB}: spec.activeDeadlineSeconds",
        "at least 1",
    ),
    "no hosts": (lambda d: worker_of(d).update(numOfHosts=0), f"{CLUSTER}: {GROUPS}.numOfHosts", "at least 1"),
    "no containers": (
        lambda d: worker_of(d)["template"]["spec"].update(containers=[]),
        f"{CLUSTER}: {GROUPS}.template.spec.containers",
        "must be at least 1, and are 0",
    ),
    "label that is too long": (
        lambda d: worker_of(d).update(labels={"kind": "x" * 64}),
        f"{CLUSTER}: {GROUPS}.labels.kind",
        "at most 63",
    ),
    "label without a name": (
        lambda d: worker_of(d).update(labels={"example.com/": "x"}),
        f"{CLUSTER}: {GROUPS}.labels.example.com/",
        "is no key",
    ),
    "two groups of a name": (
        lambda d: at(d, CLUSTER, "spec", "workerGroupSpecs", 1).update(groupName="CPU"),
        f"{CLUSTER}: spec.workerGroupSpecs[1].groupName",
        "another group's name",
    ),
    "fewer workers than the least": (
        lambda d: worker_of(d).update(minReplicas=2, replicas=1),
        f"{CLUSTER}: {GROUPS}.replicas",
        "between 2 and 8",
    ),
    "group that sleeps": (lambda d: worker_of(d).update(suspend=True), f"{CLUSTER}: {GROUPS}.suspend", "own to set"),
    "resources in two places": (
        lambda d: worker_of(d).update(resources={"CPU": "4"}, rayStartParams={"num-cpus": "8"}),
        f"{CLUSTER}: {GROUPS}.resources",
        "stands beside rayStartParams.num-cpus",
    ),
    "labels among Ray's words": (
        lambda d: worker_of(d).update(rayStartParams={"labels": "a=b"}),
        f"{CLUSTER}: {GROUPS}.rayStartParams.labels",
        "KubeRay refuses it",
    ),
    "idle timeout of a group for the first autoscaler": (
        lambda d: (
            at(d, CLUSTER, "spec", "autoscalerOptions").update(version="v1")
            or worker_of(d).update(idleTimeoutSeconds=0)
        ),
        f"{CLUSTER}: {GROUPS}.idleTimeoutSeconds",
        "say autoscalerOptions.version: v2",
    ),
    "priority of a group without autoscaler": (
        lambda d: d[CLUSTER]["spec"].update(enableInTreeAutoscaling=False) or worker_of(d).update(priority=-1),
        f"{CLUSTER}: {GROUPS}.priority",
        "say autoscalerOptions.version: v2",
    ),
    "autoscaler of no version": (
        lambda d: at(d, CLUSTER, "spec", "autoscalerOptions").pop("version"),
        f"{CLUSTER}: spec.autoscalerOptions.version",
        "`ray start` then takes v2",
    ),
    "autoscaler said in two places": (
        lambda d: at(d, CLUSTER, "spec", "headGroupSpec", "template", "spec", "containers", 0).update(
            env=[{"name": "RAY_enable_autoscaler_v2", "value": "1"}]
        ),
        f"{CLUSTER}: spec.headGroupSpec.template.spec.containers[0].env[0]",
        "is what autoscalerOptions.version says",
    ),
    "autoscaler's variable without an autoscaler": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0).update(
            env=[{"name": "RAY_enable_autoscaler_v2", "value": "true"}]
        ),
        f"{JOB}: spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].env[0]",
        "there is no autoscaler",
    ),
    "autoscaled pod that starts again": (
        lambda d: worker_of(d)["template"]["spec"].update(restartPolicy="Always"),
        f"{CLUSTER}: {GROUPS}.template.spec.restartPolicy",
        "say Never",
    ),
    "Kubernetes' token in a job": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "authOptions").update(enableK8sTokenAuth=True),
        f"{JOB}: spec.rayClusterSpec.authOptions.enableK8sTokenAuth",
        "KubeRay refuses it for a RayJob",
    ),
    "Kubernetes' token and a secret": (
        lambda d: at(d, CLUSTER, "spec", "authOptions").update(enableK8sTokenAuth=True, secretName="token"),
        f"{CLUSTER}: spec.authOptions.secretName",
        "there is no secret",
    ),
    "upgrade of a job's cluster": (
        lambda d: d[JOB]["spec"]["rayClusterSpec"].update(upgradeStrategy={"type": "Recreate"}),
        f"{JOB}: spec.rayClusterSpec.upgradeStrategy",
        "never upgraded",
    ),
    "selector of nothing": (
        selects(clusterSelector={"stillgrain/kind": "cpu"}),
        f"{JOB}: spec.clusterSelector",
        "names no cluster: say ray.io/cluster",
    ),
    "selector that is empty": (selects(clusterSelector={}), f"{JOB}: spec.rayClusterSpec", "nowhere to run"),
    "selector of a job that waits": (selects(suspend=True), f"{JOB}: spec.suspend", "cannot be suspended"),
    "selector with new attempts": (selects(backoffLimit=1), f"{JOB}: spec.backoffLimit", "rules out: say 0"),
    "selector with a sidecar": (selects(submissionMode="SidecarMode"), f"{JOB}: spec.submissionMode", "no sidecar"),
    "selector beside a cluster": (
        lambda d: (
            d[JOB]["spec"].update(clusterSelector={"ray.io/cluster": "a"}, suspend=False, backoffLimit=0)
            or d[JOB]["metadata"]["labels"].pop(LABEL)
        ),
        f"{JOB}: spec.clusterSelector",
        "stands beside rayClusterSpec",
    ),
    "new attempts by hand": (
        lambda d: d[JOB]["spec"].update(submissionMode="InteractiveMode"),
        f"{JOB}: spec.backoffLimit",
        "nobody submits a second time",
    ),
    "submitter that starts again": (
        lambda d: at(d, JOB, "spec", "submitterPodTemplate", "spec").update(restartPolicy="Always"),
        f"{JOB}: spec.submitterPodTemplate.spec.restartPolicy",
        "cannot have Always",
    ),
    "sidecar with a pod of its own": (sidecar, f"{JOB}: spec.submitterPodTemplate", "no meaning in SidecarMode"),
    "sidecar with its attempts": (
        lambda d: sidecar(d, "submitterPodTemplate") or d[JOB]["spec"].update(submitterConfig={"backoffLimit": 2}),
        f"{JOB}: spec.submitterConfig",
        "no meaning in SidecarMode",
    ),
    "sidecar that starts again": (
        lambda d: (
            sidecar(d, "submitterPodTemplate")
            or at(d, JOB, "spec", "rayClusterSpec", "headGroupSpec", "template", "spec").update(restartPolicy="Always")
        ),
        f"{JOB}: spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy",
        "submit the job anew",
    ),
    "name with a capital": (
        lambda d: d["ServiceAccount/stillgrain"]["metadata"].update(name="Stillgrain"),
        "ServiceAccount/stillgrain: metadata.name",
        "small letters",
    ),
    "text for a list": (
        lambda d: container_of(d).update(args="--help"),
        f"{CLUSTER}: {CONTAINER}.args",
        "must be a list",
    ),
    "list for names": (
        lambda d: worker_of(d).update(rayStartParams=["num-cpus"]),
        f"{CLUSTER}: {GROUPS}.rayStartParams",
        "must be a mapping",
    ),
    "no dashboard": (
        lambda d: head_of(d)["rayStartParams"].update({"include-dashboard": "False"}),
        f"{CLUSTER}: spec.headGroupSpec.rayStartParams.include-dashboard",
        "there are no jobs",
    ),
    "Ray's resources without quotes": (
        lambda d: head_of(d)["rayStartParams"].update(resources="{job_slot: 4}"),
        f"{CLUSTER}: spec.headGroupSpec.rayStartParams.resources",
        "is not JSON in quotes",
    ),
    "runtime that is no YAML": (
        lambda d: d[JOB]["spec"].update(runtimeEnvYAML="a: ["),
        f"{JOB}: spec.runtimeEnvYAML",
        "is not YAML",
    ),
    "runtime that is a list": (
        lambda d: d[JOB]["spec"].update(runtimeEnvYAML="- a"),
        f"{JOB}: spec.runtimeEnvYAML",
        "is no mapping",
    ),
    "two ways to delete": (
        lambda d: d[JOB]["spec"].update(
            deletionStrategy={
                "onSuccess": {"policy": "DeleteSelf"},
                "deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}],
            }
        ),
        f"{JOB}: spec.deletionStrategy",
        "leave one out",
    ),
    "workers deleted that grow again": (
        deletes("DeleteWorkers", grows),
        f"{JOB}: spec.deletionStrategy.onSuccess.policy",
        "starts workers anew",
    ),
    "somebody else's cluster deleted": (
        deletes("DeleteCluster", selects()),
        f"{JOB}: spec.deletionStrategy.onSuccess.policy",
        "not this job's to delete",
    ),
    "half of what is deleted": (
        lambda d: d[JOB]["spec"].update(deletionStrategy={"onSuccess": {"policy": "DeleteCluster"}}),
        f"{JOB}: spec.deletionStrategy",
        "needs both",
    ),
    "nothing deleted and all": (
        lambda d: d[JOB]["spec"].update(
            deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}, "onFailure": {"policy": "DeleteNone"}}
        ),
        f"{JOB}: spec.deletionStrategy.onFailure.policy",
        "shutdownAfterJobFinishes true",
    ),
    "rules of deletion in the queue": (
        lambda d: d[JOB]["spec"].update(
            deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}]}
        ),
        f"{JOB}: spec.deletionStrategy.deletionRules",
        "say ttlSecondsAfterFinished instead",
    ),
    "deletion at a state that is no end": (
        lambda d: d[JOB]["spec"].update(
            deletionStrategy={"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "RUNNING"}}]}
        ),
        f"{JOB}: spec.deletionStrategy.deletionRules[0].condition.jobStatus",
        "one of SUCCEEDED, FAILED",
    ),
    "password in clear": (
        lambda d: d[CLUSTER]["spec"].update(
            gcsFaultToleranceOptions={"redisAddress": "redis:6379", "redisPassword": {"value": "hunter2"}}
        ),
        f"{CLUSTER}: spec.gcsFaultToleranceOptions.redisPassword.value",
        "is a password in clear",
    ),
    "state without a place": (
        lambda d: d[CLUSTER]["spec"].update(gcsFaultToleranceOptions={}),
        f"{CLUSTER}: spec.gcsFaultToleranceOptions.redisAddress",
        "no state to keep",
    ),
    "state in two places": (
        lambda d: d[CLUSTER]["spec"].update(
            gcsFaultToleranceOptions={"backend": "rocksdb", "redisAddress": "redis:6379", "storage": {"size": "1Gi"}}
        ),
        f"{CLUSTER}: spec.gcsFaultToleranceOptions.redisAddress",
        "no meaning with backend: rocksdb",
    ),
    "state on a volume of Redis": (
        lambda d: d[CLUSTER]["spec"].update(gcsFaultToleranceOptions={"redisAddress": "redis:6379", "storage": {}}),
        f"{CLUSTER}: spec.gcsFaultToleranceOptions.storage",
        "is a volume for backend: rocksdb",
    ),
    "volume that has a size already": (
        lambda d: d[CLUSTER]["spec"].update(
            gcsFaultToleranceOptions={"backend": "rocksdb", "storage": {"claimName": "state", "size": "1Gi"}}
        ),
        f"{CLUSTER}: spec.gcsFaultToleranceOptions.storage.claimName",
        "has its size already",
    ),
    "state said in annotations too": (
        lambda d: (
            d[CLUSTER]["metadata"].update(annotations={"ray.io/ft-enabled": "true"})
            or d[CLUSTER]["spec"].update(gcsFaultToleranceOptions={"redisAddress": "redis:6379"})
        ),
        f"{CLUSTER}: metadata.annotations.ray.io/ft-enabled",
        "stands beside gcsFaultToleranceOptions",
    ),
    "password among Ray's words": (
        lambda d: head_of(d)["rayStartParams"].update({"redis-password": "hunter2"}),
        f"{CLUSTER}: spec.headGroupSpec.rayStartParams.redis-password",
        "say it in gcsFaultToleranceOptions",
    ),
    "state in a variable": (
        lambda d: at(d, CLUSTER, "spec", "headGroupSpec", "template", "spec", "containers", 0).update(
            env=[{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]
        ),
        f"{CLUSTER}: spec.headGroupSpec.template.spec.containers[0].env[0]",
        "say it in gcsFaultToleranceOptions",
    ),
    "rules for what is not denied": (
        lambda d: d[CLUSTER]["spec"].update(networkPolicy={"mode": "DenyAllIngress", "head": {"egressRules": [{}]}}),
        f"{CLUSTER}: spec.networkPolicy.head.egressRules",
        "DenyAllIngress does not deny",
    ),
    "rules for a group that is not there": (
        lambda d: d[CLUSTER]["spec"].update(networkPolicy={"workerGroups": [{"groupName": "tpu"}]}),
        f"{CLUSTER}: spec.networkPolicy.workerGroups[0].groupName",
        "there is no group 'tpu'",
    ),
}
# What Kueue's schemas and webhooks refuse, and what it never admits (v1beta2).
FAULTS |= {
    "seven groups beside a submitter": (groups_of(7), f"{JOB}: spec.rayClusterSpec.workerGroupSpecs", "more than 6"),
    "group with the head's name": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "workerGroupSpecs", 0).update(groupName="Head"),
        f"{JOB}: spec.rayClusterSpec.workerGroupSpecs[0].groupName",
        "Kueue's name for other pods",
    ),
    "group with a name for nothing": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "workerGroupSpecs", 0).update(groupName="gpu_workers"),
        f"{JOB}: spec.rayClusterSpec.workerGroupSpecs[0].groupName",
        "letters, digits and dashes",
    ),
    "cluster in the queue that is not suspended": (
        lambda d: (
            d[CLUSTER]["metadata"]["labels"].update({LABEL: "stillgrain"})
            or d[CLUSTER]["spec"].update(enableInTreeAutoscaling=False)
        ),
        f"{CLUSTER}: spec.suspend",
        "before Kueue has room",
    ),
    "cluster in the queue that grows": (
        lambda d: (
            d[CLUSTER]["metadata"]["labels"].update({LABEL: "stillgrain"}) or d[CLUSTER]["spec"].update(suspend=True)
        ),
        f"{CLUSTER}: spec.enableInTreeAutoscaling",
        "takes more than Kueue has given",
    ),
    "cluster that is there, from the queue": (
        lambda d: selects()(d) or d[JOB]["metadata"]["labels"].update({LABEL: "stillgrain"}),
        f"{JOB}: spec.clusterSelector",
        "Kueue admits no job on a cluster that is there",
    ),
    "device that no quota covers": (
        lambda d: at(
            d, JOB, "spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources"
        ).update(limits={"example.com/fpga": 1}, requests={}),
        f"{JOB}: spec.rayClusterSpec",
        "asks for example.com/fpga, which the queue does not cover",
    ),
    "too many flavors": (wide(5, 1, 64), f"{QUEUE}: spec.resourceGroups", "have 320 flavors, and Kueue takes 256"),
    "too many resources": (wide(5, 64, 1), f"{QUEUE}: spec.resourceGroups", "have 320 resources, and Kueue takes 256"),
    "too many quotas": (wide(1, 64, 9), f"{QUEUE}: spec.resourceGroups[0]", "has more than 512 quotas"),
    "two groups with all flavors at once": (
        lambda d: (
            wide(2, 1, 1)(d)
            or d[QUEUE]["spec"].update(concurrentAdmissionPolicy={"migration": {"mode": "RetainFirstAdmission"}})
        ),
        f"{QUEUE}: spec.concurrentAdmissionPolicy",
        "needs one resource group",
    ),
    "queue of another namespace": (
        lambda d: d[JOB]["metadata"].update(namespace="default"),
        f"{JOB}: metadata.namespace",
        "is default, and the LocalQueue stillgrain is of stillgrain",
    ),
    "more hosts than the queue has": (
        lambda d: at(d, JOB, "spec", "rayClusterSpec", "workerGroupSpecs", 0).update(numOfHosts=30),
        f"{JOB}: spec.rayClusterSpec",
        "asks for 242.5 cpu in all",
    ),
    "queue that lets nobody in": (
        lambda d: d[QUEUE]["spec"].pop("namespaceSelector"),
        f"{QUEUE}: spec.namespaceSelector",
        "must be there",
    ),
    "seventeen groups of quotas": (
        lambda d: d[QUEUE]["spec"].update(resourceGroups=[d[QUEUE]["spec"]["resourceGroups"][0]] * 17),
        f"{QUEUE}: spec.resourceGroups",
        "must be 0 to 16, and are 17",
    ),
    "group of quotas without flavors": (
        lambda d: at(d, QUEUE, "spec", "resourceGroups", 0).update(flavors=[]),
        f"{QUEUE}: spec.resourceGroups[0].flavors",
        "must be 1 to 64, and are 0",
    ),
    "flavor in two groups": (
        lambda d: at(d, QUEUE, "spec", "resourceGroups").append(
            {
                "coveredResources": ["example.com/fpga"],
                "flavors": [
                    {"name": "stillgrain-cpu", "resources": [{"name": "example.com/fpga", "nominalQuota": 1}]},
                ],
            }
        ),
        f"{QUEUE}: spec.resourceGroups",
        "the flavor stillgrain-cpu stands there twice",
    ),
    "quota below nothing": (
        lambda d: quota_of(d).update(nominalQuota=-1),
        f"{QUEUE}: spec.resourceGroups[0].flavors[0].resources[0].nominalQuota",
        "a quantity",
    ),
    "loan from nobody": (
        lambda d: quota_of(d).update(borrowingLimit=8),
        f"{QUEUE}: spec.resourceGroups[0].flavors[0].resources[0].borrowingLimit",
        "say cohortName too",
    ),
    "loan of more than there is": (
        lambda d: d[QUEUE]["spec"].update(cohortName="lab") or quota_of(d).update(lendingLimit=129),
        f"{QUEUE}: spec.resourceGroups[0].flavors[0].resources[0].lendingLimit",
        "is 129, and nominalQuota 128",
    ),
    "loan without a claim": (
        lambda d: at(d, QUEUE, "spec", "preemption").update(borrowWithinCohort={"policy": "LowerPriority"}),
        f"{QUEUE}: spec.preemption.borrowWithinCohort",
        "needs reclaimWithinCohort",
    ),
    "preference without a choice": (
        lambda d: d[QUEUE]["spec"].update(flavorFungibility={"preference": "PreemptionOverBorrowing"}),
        f"{QUEUE}: spec.flavorFungibility.preference",
        "needs TryNextFlavor",
    ),
    "words of v1beta1": (
        lambda d: d[QUEUE]["spec"].update(flavorFungibility={"whenCanBorrow": "Borrow"}),
        f"{QUEUE}: spec.flavorFungibility.whenCanBorrow",
        "one of MayStopSearch, TryNextFlavor",
    ),
    "check of a flavor that is not there": (
        lambda d: d[QUEUE]["spec"].update(
            admissionChecksStrategy={"admissionChecks": [{"name": "nodes", "onFlavors": ["stillgrain-gpus"]}]}
        ),
        f"{QUEUE}: spec.admissionChecksStrategy.admissionChecks[0].onFlavors",
        "did you mean 'stillgrain-gpu'?",
    ),
    "flavors at once in strict order": (
        lambda d: d[QUEUE]["spec"].update(
            queueingStrategy="StrictFIFO", concurrentAdmissionPolicy={"migration": {"mode": "TryPreferredFlavors"}}
        ),
        f"{QUEUE}: spec.concurrentAdmissionPolicy",
        "nothing for StrictFIFO",
    ),
    "flavor of nine labels": (
        lambda d: d.pop(QUEUE) and d[FLAVOR]["spec"].update(nodeLabels={f"kind{i}": "x" for i in range(9)}),
        f"{FLAVOR}: spec.nodeLabels",
        "must be 0 to 8, and are 9",
    ),
    "topology without nodes": (
        lambda d: d[FLAVOR].update(spec={"topologyName": "racks"}),
        f"{FLAVOR}: spec.topologyName",
        "needs nodeLabels",
    ),
    "taint of no effect": (
        lambda d: d.pop(QUEUE) and d[FLAVOR]["spec"].update(nodeTaints=[{"key": "spot", "effect": "Never"}]),
        f"{FLAVOR}: spec.nodeTaints[0].effect",
        "one of NoSchedule, PreferNoSchedule, NoExecute",
    ),
    "taint that is there twice": (
        lambda d: d[FLAVOR]["spec"].update(nodeTaints=[{"key": "spot", "effect": "NoExecute"}] * 2),
        f"{FLAVOR}: spec.nodeTaints",
        "stands there twice",
    ),
    "toleration of a value that only exists": (
        lambda d: at(d, GPUS, "spec", "tolerations", 0).update(value="present"),
        f"{GPUS}: spec.tolerations[0].value",
        "nothing to compare with",
    ),
    "toleration of nothing": (
        lambda d: d[GPUS]["spec"].update(tolerations=[{"effect": "NoSchedule"}]),
        f"{GPUS}: spec.tolerations[0]",
        "has no key",
    ),
    "toleration for a while": (
        lambda d: at(d, GPUS, "spec", "tolerations", 0).update(tolerationSeconds=60),
        f"{GPUS}: spec.tolerations[0].tolerationSeconds",
        "needs effect: NoExecute",
    ),
    "long description": (
        lambda d: d["WorkloadPriorityClass/stillgrain-low"].update(description="x" * 2049),
        "WorkloadPriorityClass/stillgrain-low: description",
        "of 0 to 2048 characters",
    ),
}
# What Kubernetes itself refuses of pods.
FAULTS |= {
    "part of a device": (
        lambda d: container_of(d).update(resources={"limits": {"nvidia.com/gpu": "0.5"}}),
        f"{CLUSTER}: {CONTAINER}.resources.limits.nvidia.com/gpu",
        "devices are given whole",
    ),
    "device without a limit": (
        lambda d: container_of(d)["resources"]["requests"].update({"nvidia.com/gpu": 1}),
        f"{CLUSTER}: {CONTAINER}.resources.requests.nvidia.com/gpu",
        "the limit not there",
    ),
    "less than nothing": (
        lambda d: container_of(d)["resources"]["requests"].update(cpu="-1"),
        f"{CLUSTER}: {CONTAINER}.resources.requests.cpu",
        "a quantity",
    ),
    "volume that is not there": (
        lambda d: (
            container_of(d).update(volumeMounts=[{"name": "scratch", "mountPath": "/scratch"}])
            or worker_of(d)["template"]["spec"].update(volumes=[{"name": "scratchs", "emptyDir": {}}])
        ),
        f"{CLUSTER}: {CONTAINER}.volumeMounts[0].name",
        "did you mean 'scratchs'?",
    ),
    "two containers of a name": (
        lambda d: worker_of(d)["template"]["spec"]["containers"].append(container_of(d)),
        f"{CLUSTER}: {GROUPS}.template.spec.containers[1].name",
        "another container's name",
    ),
    "variable said twice": (
        lambda d: container_of(d).update(env=[{"name": "A", "value": "b", "valueFrom": {}}]),
        f"{CLUSTER}: {CONTAINER}.env[0]",
        "has a value and a valueFrom",
    ),
    "port that is none": (
        lambda d: container_of(d).update(ports=[{"containerPort": 65536}]),
        f"{CLUSTER}: {CONTAINER}.ports[0].containerPort",
        "1 to 65535",
    ),
    "annotations without end": (
        lambda d: d[JOB]["metadata"].update(annotations={"stillgrain/resolved": "x" * 270_000}),
        f"{JOB}: metadata.annotations",
        "more than 262144 bytes",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_nothing_else(name: str, documents: Documents) -> None:
    plant, where, message = FAULTS[name]
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


ALLOWED: dict[str, Callable[[Documents], object]] = {
    "six groups beside a submitter": groups_of(6),
    "seven groups without a submitter": lambda d: groups_of(7)(d) or d[JOB]["spec"].update(submissionMode="HTTPMode"),
    "a job on the cluster that is there": selects(),
    "a sidecar": lambda d: sidecar(d, "submitterPodTemplate"),
    "a group that waits longer": lambda d: worker_of(d).update(idleTimeoutSeconds=3600, priority=-1),
    "a priority below all": lambda d: d["WorkloadPriorityClass/stillgrain-low"].update(value=-1),
    "a name with a dot": lambda d: (
        d[FLAVOR]["metadata"].update(name="cpu.stillgrain")
        or at(d, QUEUE, "spec", "resourceGroups", 0, "flavors", 0).update(name="cpu.stillgrain")
    ),
    "a queue that shares": lambda d: (
        d[QUEUE]["spec"].update(cohortName="lab.imaging")
        or quota_of(d).update(borrowingLimit=64, lendingLimit="128")
        or at(d, QUEUE, "spec", "preemption").update(
            reclaimWithinCohort="Any", borrowWithinCohort={"policy": "LowerPriority", "maxPriorityThreshold": -1}
        )
    ),
    "state on a volume": lambda d: d[CLUSTER]["spec"].update(
        gcsFaultToleranceOptions={"backend": "rocksdb", "storage": {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}}
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_kuberay_and_kueue_take_is_no_fault(name: str, documents: Documents) -> None:
    """Beside each limit, the nearest that is within it."""
    ALLOWED[name](documents)
    assert faults_of(documents) == []


@pytest.mark.parametrize(
    ("version", "key", "message"),
    [
        (None, "spec.rayVersion", "gives no token without it"),
        ("2.51.0", "spec.rayVersion", "has no tokens"),
        ("2.55.1", f"{GROUPS}.priority", "needs Ray 2.56"),
    ],
)
def test_a_ray_that_is_too_old_is_found_also_where_nothing_pins_a_version(
    version: str | None, key: str, message: str, documents: Documents
) -> None:
    spec = documents[CLUSTER]["spec"]
    if version is None:
        del spec["rayVersion"]
    else:
        spec["rayVersion"] = version
    worker_of(documents)["priority"] = 1 if "priority" in key else 0
    (fault,) = manifest_faults([("f", documents[CLUSTER])], None)
    assert fault.key == key
    assert message in fault.message


def test_quantities_are_those_of_kubernetes() -> None:
    said = {
        "500m": 0.5,
        "16Gi": 16 * 2**30,
        "1k": 1000,
        "1e3": 1000,
        8: 8,
        "0": 0,
        "2.5": 2.5,
        "1E": 1e18,
        "1Ki": 1024,
        "-2m": -0.002,
    }
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


def as_kubernetes(documents: Documents) -> list[dict[str, Any]]:
    """Its own objects, and the pods of KubeRay's as templates of its own."""
    objects = [d for d in documents.values() if d["apiVersion"] in ("v1", "networking.k8s.io/v1")]
    job, cluster = documents[JOB]["spec"], documents[CLUSTER]["spec"]
    templates = [job["submitterPodTemplate"]]
    for spec in (job["rayClusterSpec"], cluster):
        templates += [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    # What is said of the autoscaler goes into a container as it is.
    options = {name: value for name, value in cluster["autoscalerOptions"].items() if name in FIELDS["Container"]}
    templates.append({"spec": {"containers": [{"name": "autoscaler", **options}]}})
    form = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}}
    return [*objects, *({**form, "template": template} for template in templates)]


def test_the_schemas_of_kubernetes_take_all_pods_and_its_own_objects(documents: Documents) -> None:
    """Those of a package, so that no server is asked; KubeRay's and Kueue's own fields are no part of them."""
    objects = as_kubernetes(documents)
    kinds = [one["kind"] for one in objects]
    assert sorted(kinds) == ["Namespace", "NetworkPolicy", *["PodTemplate"] * 7, "ServiceAccount"]
    for one in objects:
        assert kubernetes_validate.validate(one, KUBERNETES, strict=True) == KUBERNETES
    objects[-1]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(objects[-1], KUBERNETES, strict=True)


KUBERNETES = "1.34"
SAME = {
    # here: there
    "Container": "io.k8s.api.core.v1.Container",
    "ContainerSecurity": "io.k8s.api.core.v1.SecurityContext",
    "Env": "io.k8s.api.core.v1.EnvVar",
    "Labelled": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "Named": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "Peer": "io.k8s.api.networking.v1.NetworkPolicyPeer",
    "PeerPort": "io.k8s.api.networking.v1.NetworkPolicyPort",
    "PodSpec": "io.k8s.api.core.v1.PodSpec",
    "PodTemplate": "io.k8s.api.core.v1.PodTemplateSpec",
    "Resources": "io.k8s.api.core.v1.ResourceRequirements",
    "Selector": "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "Taint": "io.k8s.api.core.v1.Taint",
    "Toleration": "io.k8s.api.core.v1.Toleration",
    "VolumeMount": "io.k8s.api.core.v1.VolumeMount",
}


def test_the_table_knows_no_field_of_pods_that_kubernetes_does_not_and_asks_for_all_that_it_does() -> None:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{KUBERNETES}.0-local-strict" / "_definitions.json").read_text(encoding="utf-8")
    definitions = json.loads(text)["$defs"]
    for here, there in SAME.items():
        schema = definitions[there]
        assert {name.removesuffix("!") for name in FIELDS[here]} <= schema["properties"].keys(), here
        assert set(schema.get("required", [])) <= {name[:-1] for name in FIELDS[here] if name.endswith("!")}, here


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
