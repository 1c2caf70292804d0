"""Faults of RayClusters and RayJobs: what KubeRay's operator refuses, and what it accepts and jobs then suffer from.

Its rules are those of 1.7. Where 1.5 and 1.6 are less strict, what they accept does not do what it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from cluster.checks.faults import Fault
from cluster.checks.pods import containers, quantity, resource_faults, template_faults
from cluster.checks.versions import Versions

LONGEST_NAMES = {"RayCluster": 53, "RayJob": 47}
"""KubeRay makes names of services and pods from them, of at most 63 characters."""
_SELECTED = "ray.io/cluster"
_SECOND_AUTOSCALER = "RAY_enable_autoscaler_v2"
# A token needs Ray 2.52, a priority of workers 2.56.
_OLDEST_WITH_TOKEN, _OLDEST_WITH_PRIORITY = (2, 52), (2, 56)
_REDIS = ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace")
# What the operator itself gives to a head that keeps its state.
_OWN_WITH_STATE = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")


# --- jobs -------------------------------------------------------------------------------------------------------------


def job_faults(document: Mapping[str, Any], file: str, versions: Versions | None) -> Iterator[Fault]:
    spec = document["spec"]
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        yield Fault(file, "spec.entrypoint", "is not there, so that nothing would run: add it")
    if "rayClusterSpec" not in spec and not spec.get("clusterSelector"):
        yield Fault(file, "spec.rayClusterSpec", "is not there, nor a clusterSelector: the job has nowhere to run")
    if not spec.get("shutdownAfterJobFinishes"):
        # KubeRay then refuses ttlSecondsAfterFinished and suspend as well.
        yield Fault(
            file,
            "spec.shutdownAfterJobFinishes",
            "is not true: the cluster stays and costs, and Kueue admits no such job",
        )
    yield from _selector_faults(spec, file)
    yield from _mode_faults(spec, file)
    yield from _deletion_faults(spec, file)
    try:
        if not isinstance(json.loads(spec.get("entrypointResources", "{}")), dict):
            raise ValueError("no mapping")
    except ValueError as error:
        yield Fault(file, "spec.entrypointResources", f"is not JSON such as '{{\"job_slot\": 1}}' ({error})")
    yield from _runtime_faults(spec.get("runtimeEnvYAML", ""), file)
    yield from template_faults(spec.get("submitterPodTemplate", {}), file, "spec.submitterPodTemplate", versions)
    if "rayClusterSpec" in spec:
        cluster, key = spec["rayClusterSpec"], "spec.rayClusterSpec"
        if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            yield Fault(file, f"{key}.authOptions.enableK8sTokenAuth", "KubeRay refuses it for a RayJob: leave it out")
        if "upgradeStrategy" in cluster:
            yield Fault(file, f"{key}.upgradeStrategy", "a job's cluster is never upgraded: leave it out")
        yield from cluster_faults(cluster, file, key, versions, document["metadata"].get("annotations", {}))


def _selector_faults(spec: Mapping[str, Any], file: str) -> Iterator[Fault]:
    """A job on a cluster that is there already."""
    selector = spec.get("clusterSelector")
    if not selector:
        return
    if not selector.get(_SELECTED):
        yield Fault(file, "spec.clusterSelector", f"names no cluster: say {_SELECTED}: NAME")
    if "rayClusterSpec" in spec:
        yield Fault(
            file, "spec.clusterSelector", "stands beside rayClusterSpec, which is then not looked at: leave one out"
        )
    if spec.get("suspend"):
        yield Fault(file, "spec.suspend", "a job on a cluster that is there cannot be suspended: leave it out")
    if spec.get("backoffLimit"):
        yield Fault(
            file, "spec.backoffLimit", "each attempt wants a new cluster, which clusterSelector rules out: say 0"
        )


def _mode_faults(spec: Mapping[str, Any], file: str) -> Iterator[Fault]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield Fault(file, "spec.backoffLimit", "nobody submits a second time in InteractiveMode: say 0")
    if mode == "K8sJobMode" and spec.get("submitterPodTemplate", {}).get("spec", {}).get("restartPolicy") == "Always":
        yield Fault(
            file, "spec.submitterPodTemplate.spec.restartPolicy", "a Kubernetes Job cannot have Always: say Never"
        )
    if mode == "SidecarMode":
        if spec.get("clusterSelector"):
            yield Fault(file, "spec.submissionMode", "a cluster that is there gets no sidecar: say K8sJobMode")
        for name in ("submitterPodTemplate", "submitterConfig"):
            if name in spec:
                yield Fault(file, f"spec.{name}", "has no meaning in SidecarMode, and KubeRay refuses it: leave it out")
        head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
        if head.get("spec", {}).get("restartPolicy", "Never") != "Never":
            yield Fault(
                file,
                "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy",
                "the sidecar would submit the job anew: say Never",
            )


def _deletion_faults(spec: Mapping[str, Any], file: str) -> Iterator[Fault]:
    strategy, key = spec.get("deletionStrategy"), "spec.deletionStrategy"
    if strategy is None:
        return
    outcomes = [name for name in ("onSuccess", "onFailure") if name in strategy]
    if "deletionRules" in strategy and outcomes:
        yield Fault(file, key, f"has deletionRules and {' and '.join(outcomes)}: leave one out")
    elif "deletionRules" in strategy and spec.get("shutdownAfterJobFinishes"):
        yield Fault(
            file,
            f"{key}.deletionRules",
            "rule out shutdownAfterJobFinishes, without which Kueue admits no job: say ttlSecondsAfterFinished instead",
        )
    elif "deletionRules" not in strategy and len(outcomes) < 2:
        yield Fault(file, key, "needs both onSuccess and onFailure: add the other, or leave it out")
    for name in outcomes:
        policy = strategy[name]["policy"]
        if policy == "DeleteNone" and spec.get("shutdownAfterJobFinishes"):
            yield Fault(file, f"{key}.{name}.policy", "is DeleteNone, and shutdownAfterJobFinishes true: leave one out")
        if policy == "DeleteWorkers" and spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield Fault(file, f"{key}.{name}.policy", "the autoscaler starts workers anew: say DeleteCluster")
        if policy in ("DeleteCluster", "DeleteWorkers") and spec.get("clusterSelector"):
            yield Fault(file, f"{key}.{name}.policy", "the cluster is not this job's to delete: say DeleteSelf")


def _runtime_faults(text: str, file: str) -> Iterator[Fault]:
    key = "spec.runtimeEnvYAML"
    try:
        runtime = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        yield Fault(file, key, f"is not YAML: {' '.join(str(error).split())}")
        return
    if not isinstance(runtime, dict):
        yield Fault(file, key, "is no mapping: say working_dir: s3://bucket/package.zip")
        return
    place = str(runtime.get("working_dir", ""))
    if place and "://" not in place:
        yield Fault(
            file,
            f"{key}.working_dir",
            f"{place} is no URI, and pods do not see this machine: give s3://bucket/package.zip",
        )


# --- clusters ---------------------------------------------------------------------------------------------------------


def cluster_faults(
    spec: Mapping[str, Any], file: str, key: str, versions: Versions | None, annotations: Mapping[str, str]
) -> Iterator[Fault]:
    """annotations  of the object that holds it"""
    yield from _auth_faults(spec, file, key)
    if versions is not None:
        yield from versions.ray_faults(str(spec.get("rayVersion", "not there")), file, f"{key}.rayVersion")
    elif _ray_of(spec) is None:
        yield Fault(file, f"{key}.rayVersion", "is not there, and KubeRay gives no token without it: add it")
    elif not _is_ray(spec, _OLDEST_WITH_TOKEN):
        yield Fault(file, f"{key}.rayVersion", f"is {spec['rayVersion']}, and has no tokens: take Ray 2.52 or newer")
    yield from _head_faults(spec["headGroupSpec"], file, f"{key}.headGroupSpec")
    groups = [(f"{key}.headGroupSpec", spec["headGroupSpec"])]
    groups += [(f"{key}.workerGroupSpecs[{i}]", group) for i, group in enumerate(spec.get("workerGroupSpecs", []))]
    named: set[str] = set()
    for at, group in groups[1:]:
        yield from _size_faults(group, file, at)
        # Kueue and the names of pods are in small letters.
        name = group["groupName"].lower()
        if name in named:
            yield Fault(file, f"{at}.groupName", f"'{group['groupName']}' is another group's name: rename one")
        named.add(name)
    for at, group in groups:
        yield from _start_faults(group, file, at)
        yield from template_faults(group["template"], file, f"{at}.template", versions)
    yield from _autoscaler_faults(spec, file, key, groups)
    yield from _state_faults(spec, file, key, annotations)
    yield from _network_faults(spec, file, key)


def _auth_faults(spec: Mapping[str, Any], file: str, key: str) -> Iterator[Fault]:
    auth = spec.get("authOptions", {})
    if auth.get("mode") != "token":
        yield Fault(
            file,
            f"{key}.authOptions.mode",
            "is not token: whoever reaches a port of this cluster runs code in it; say token",
        )
    if auth.get("enableK8sTokenAuth") and auth.get("secretName"):
        yield Fault(
            file, f"{key}.authOptions.secretName", "with enableK8sTokenAuth there is no secret: leave one of them out"
        )


def _ray_of(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    return None if found is None else (int(found[1]), int(found[2]))


def _is_ray(spec: Mapping[str, Any], oldest: tuple[int, int]) -> bool:
    version = _ray_of(spec)
    return version is not None and version >= oldest


def _head_faults(head: Mapping[str, Any], file: str, key: str) -> Iterator[Fault]:
    words = head.get("rayStartParams", {})
    if str(head.get("resources", {}).get("CPU", words.get("num-cpus"))) != "0":
        yield Fault(
            file,
            f"{key}.rayStartParams.num-cpus",
            'is not "0", so that trainings run beside the dashboard and the drivers: set it',
        )
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield Fault(
            file,
            f"{key}.serviceType",
            f"{head['serviceType']} shows Ray's ports outside of the cluster, in clear: say ClusterIP, and "
            "reach the dashboard with `kubectl port-forward`",
        )
    if head.get("enableIngress"):
        yield Fault(
            file, f"{key}.enableIngress", "shows the dashboard, which takes jobs, outside of the cluster: leave it out"
        )
    if words.get("include-dashboard", "true").lower() == "false":
        yield Fault(
            file, f"{key}.rayStartParams.include-dashboard", "without the dashboard there are no jobs: leave it out"
        )
    resources = dict(head.get("resources", {}))
    given = words.get("resources", "")
    if given:
        try:
            # KubeRay puts it as it is into a shell's line, hence the quotes within quotes.
            resources |= json.loads(json.loads(given) if given.startswith('"') else given.strip("'"))
        except (ValueError, TypeError):
            yield Fault(
                file, f"{key}.rayStartParams.resources", """is not JSON in quotes, as '"{\\"job_slot\\": 4}"'"""
            )
    for name in ("job_slot", "tune_driver"):
        if not quantity(resources.get(name, 0)):
            yield Fault(
                file, f"{key}.rayStartParams.resources", f"the head has no {name}, so that drivers run anywhere: add it"
            )


def _size_faults(group: Mapping[str, Any], file: str, key: str) -> Iterator[Fault]:
    low, high = group["minReplicas"], group["maxReplicas"]
    if low > high:
        yield Fault(file, f"{key}.minReplicas", f"is {low}, and maxReplicas {high}: lower it")
    elif not low <= group.get("replicas", low) <= high:
        yield Fault(file, f"{key}.replicas", f"is {group['replicas']}, and must be between {low} and {high}")
    if group.get("suspend"):
        yield Fault(
            file, f"{key}.suspend", "is KubeRay's own to set, for workers of a job that has ended: leave it out"
        )


def _start_faults(group: Mapping[str, Any], file: str, key: str) -> Iterator[Fault]:
    words = group.get("rayStartParams", {})
    twice = [name for name in ("num-cpus", "num-gpus", "memory", "resources") if words.get(name)]
    if group.get("resources") and twice:
        yield Fault(file, f"{key}.resources", f"stands beside rayStartParams.{twice[0]}: say all of them in one place")
    if "labels" in words:
        yield Fault(file, f"{key}.rayStartParams.labels", f"KubeRay refuses it: say them as {key}.labels")


def _autoscaler_faults(
    spec: Mapping[str, Any], file: str, key: str, groups: list[tuple[str, Mapping[str, Any]]]
) -> Iterator[Fault]:
    options = spec.get("autoscalerOptions", {})
    yield from resource_faults(options.get("resources", {}), file, f"{key}.autoscalerOptions.resources")
    at, said = next(iter(_variables(spec, _SECOND_AUTOSCALER)), (None, ""))
    if at is not None and not spec.get("enableInTreeAutoscaling") and said in ("1", "true"):
        yield Fault(file, f"{key}.{at}", "there is no autoscaler without enableInTreeAutoscaling: leave it out")
    elif at is not None and "version" in options:
        yield Fault(file, f"{key}.{at}", "is what autoscalerOptions.version says: leave it out")
    if spec.get("enableInTreeAutoscaling") and at is None and "version" not in options:
        yield Fault(
            file,
            f"{key}.autoscalerOptions.version",
            "is not there: `ray start` then takes v2, and KubeRay lets pods start again, as v2 must not: say v2",
        )
    second = bool(spec.get("enableInTreeAutoscaling")) and options.get("version") == "v2"
    for at, group in groups:
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if second and policy != "Never":
            yield Fault(
                file,
                f"{at}.template.spec.restartPolicy",
                f"is {policy}, and autoscaler v2 wants pods that do not start again by themselves: say Never",
            )
    for at, group in groups[1:]:
        for name in ("idleTimeoutSeconds", "priority"):
            asked = name in group and (group[name] or name == "idleTimeoutSeconds")
            if asked and not second and said not in ("1", "true"):
                yield Fault(file, f"{at}.{name}", "is read by autoscaler v2 alone: say autoscalerOptions.version: v2")
        if group.get("priority") and not _is_ray(spec, _OLDEST_WITH_PRIORITY):
            yield Fault(file, f"{at}.priority", "needs Ray 2.56 or newer: leave it out")


def _variables(spec: Mapping[str, Any], *names: str) -> Iterator[tuple[str, str]]:
    """Where the head's Ray has such a variable, and what it says: KubeRay looks at the first container."""
    for index, variable in enumerate(containers(spec["headGroupSpec"]["template"])[0].get("env", [])):
        if variable["name"] in names:
            yield f"headGroupSpec.template.spec.containers[0].env[{index}]", variable.get("value", "")


def _state_faults(spec: Mapping[str, Any], file: str, key: str, annotations: Mapping[str, str]) -> Iterator[Fault]:
    """A head that keeps its state outlives its pod: in Redis, or on a volume."""
    options, at = spec.get("gcsFaultToleranceOptions"), f"{key}.gcsFaultToleranceOptions"
    for where, _ in _variables(spec, *_OWN_WITH_STATE):
        yield Fault(file, f"{key}.{where}", "say it in gcsFaultToleranceOptions instead")
    for name in ("redis-username", "redis-password"):
        if spec["headGroupSpec"].get("rayStartParams", {}).get(name):
            yield Fault(
                file, f"{key}.headGroupSpec.rayStartParams.{name}", "say it in gcsFaultToleranceOptions instead"
            )
    if options is None:
        return
    for name in ("ray.io/ft-enabled", "ray.io/external-storage-namespace"):
        if name in annotations:
            yield Fault(file, f"metadata.annotations.{name}", "stands beside gcsFaultToleranceOptions: leave it out")
    if options.get("redisPassword", {}).get("value"):
        yield Fault(file, f"{at}.redisPassword.value", "is a password in clear: say valueFrom with a secretKeyRef")
    if options.get("backend", "redis") == "redis":
        if not options.get("redisAddress"):
            yield Fault(file, f"{at}.redisAddress", "is not there, so that there is no state to keep: add it")
        if "storage" in options:
            yield Fault(file, f"{at}.storage", "is a volume for backend: rocksdb: leave it out, or say that")
    else:
        for name in _REDIS:
            if name in options:
                yield Fault(file, f"{at}.{name}", "has no meaning with backend: rocksdb: leave it out")
        storage = options.get("storage", {})
        if storage.get("claimName") and {"size", "storageClassName", "accessModes"} & storage.keys():
            yield Fault(file, f"{at}.storage.claimName", "names a volume that has its size already: leave one out")


def _network_faults(spec: Mapping[str, Any], file: str, key: str) -> Iterator[Fault]:
    policy = spec.get("networkPolicy")
    if policy is None:
        return
    at = f"{key}.networkPolicy"
    mode = policy.get("mode", "DenyAll")
    idle = {"DenyAllEgress": "ingressRules", "DenyAllIngress": "egressRules"}.get(mode)
    places = [(name, policy[name]) for name in ("head", "worker") if name in policy]
    places += [(f"workerGroups[{i}]", rules) for i, rules in enumerate(policy.get("workerGroups", []))]
    groups = {group["groupName"] for group in spec.get("workerGroupSpecs", [])}
    for place, rules in places:
        if idle is not None and rules.get(idle):
            yield Fault(file, f"{at}.{place}.{idle}", f"allow what {mode} does not deny: leave them out")
        if "groupName" in rules and rules["groupName"] not in groups:
            yield Fault(file, f"{at}.{place}.groupName", f"there is no group '{rules['groupName']}'")
