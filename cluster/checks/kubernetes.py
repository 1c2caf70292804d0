"""Faults of manifests for KubeRay and Kueue: fields that are none, and what both accept and jobs then suffer from."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.checks.faults import Fault, nearest, secrets_in
from cluster.checks.versions import Versions

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
# Names that Kubernetes takes for objects, and those that become the name of a service.
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_QUANTITY = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(?P<unit>[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?$")
_UNITS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}
# KubeRay makes names of pods and services from a RayJob's, of at most 63 characters.
_LONGEST_NAME = 47
# Kueue 0.15 admits at most eight sets of pods at once: the head, the submitter, and these.
_MOST_GROUPS = 6

Source = tuple[str, dict[str, Any]]
"""A document, and the file it stands in."""


def manifest_faults(documents: Sequence[tuple[str, Any]], versions: Versions | None) -> list[Fault]:
    """All of them, also those between documents: a queue that is not there, a request that no quota holds.

    documents  (file, document); queues and priorities are looked for only where there are any
    versions   None leaves out what compares with constraints.txt
    """
    faults: list[Fault] = []
    sound: list[Source] = []
    for file, document in documents:
        found = list(_form_faults(document, file))
        found += secrets_in(document, file)
        if not found:
            sound.append((file, document))
        faults += found
    for file, document in sound:
        faults += _own_faults(document, file, versions)
    faults += _queue_faults(sound)
    return faults


def quantity(value: object) -> float | None:
    """Kubernetes' quantities as numbers: 500m is 0.5, 16Gi is 2^34; None for what is none."""
    match = _QUANTITY.match(str(value))
    if match is None or isinstance(value, bool):
        return None
    unit = match["unit"] or ""
    return float(str(value)) if unit[:1] in ("e", "E") and len(unit) > 1 else float(match[1]) * _UNITS.get(unit, 1.0)


# --- form -------------------------------------------------------------------------------------------------------------


@functools.cache
def _fields() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "kubernetes_fields.yaml").read_text(encoding="utf-8"))


def _form_faults(document: Any, file: str) -> Iterator[Fault]:
    if not isinstance(document, dict):
        yield Fault(file, "", "is no mapping with apiVersion and kind")
        return
    kinds = _fields()["kinds"]
    name = f"{document.get('apiVersion')} {document.get('kind')}"
    if name not in kinds:
        yield Fault(file, "kind", f"'{name}' is unknown; {nearest(name, kinds)}")
        return
    rest = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}
    yield from _shape_faults(rest, kinds[name], file, "")


def _shape_faults(value: Any, shape: Any, file: str, key: str) -> Iterator[Fault]:
    """A value that has not the form which kubernetes_fields.yaml gives it."""
    if isinstance(shape, str) and shape in _fields():
        shape = _fields()[shape]
    if isinstance(shape, dict):
        yield from _mapping_faults(value, shape, file, key)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield Fault(file, key, f"must be a list, and is {value!r}")
            return
        for index, one in enumerate(value):
            yield from _shape_faults(one, shape[0], file, f"{key}[{index}]")
    elif shape.startswith("{"):
        if not isinstance(value, Mapping):
            yield Fault(file, key, f"must be a mapping, and is {value!r}")
            return
        for name, one in value.items():
            yield from _shape_faults(one, shape[1:-1], file, f"{key}.{name}")
    elif not _fits(value, shape):
        wanted = f"one of {shape.replace('|', ', ')}" if "|" in shape else _SAID[shape]
        yield Fault(file, key, f"must be {wanted}, and is {value!r}")


_SAID = {
    "text": "a text (a number or yes/no needs quotes)",
    "whole": "a whole number of at least 0",
    "number": "a number",
    "yes_no": "true or false",
    "quantity": "a quantity such as 500m, 8 or 16Gi",
}


def _fits(value: Any, kind: str) -> bool:
    if "|" in kind:
        return value in kind.split("|")
    return {
        "any": True,
        "text": isinstance(value, str),
        "whole": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "yes_no": isinstance(value, bool),
        "quantity": quantity(value) is not None,
    }[kind]


def _mapping_faults(value: Any, shape: dict[str, Any], file: str, key: str) -> Iterator[Fault]:
    if not isinstance(value, Mapping):
        yield Fault(file, key, f"must be a mapping, and is {value!r}")
        return
    known = {name.removesuffix("!"): name for name in shape}
    for name, one in value.items():
        below = f"{key}.{name}".lstrip(".")
        if name not in known:
            yield Fault(file, below, f"unknown key; {nearest(str(name), known)}")
        else:
            yield from _shape_faults(one, shape[known[name]], file, below)
    for name, marked in known.items():
        if marked.endswith("!") and name not in value:
            yield Fault(file, f"{key}.{name}".lstrip("."), "must be there: add it")


# --- one document -----------------------------------------------------------------------------------------------------


def _own_faults(document: dict[str, Any], file: str, versions: Versions | None) -> Iterator[Fault]:
    kind, name = document["kind"], document["metadata"]["name"]
    if not _NAME.match(name):
        yield Fault(file, "metadata.name", f"'{name}' may hold small letters, digits and dashes only")
    if kind == "RayCluster":
        yield from _cluster_faults(document["spec"], file, "spec", versions)
    elif kind == "RayJob":
        yield from _job_faults(document, file, versions)
    elif kind == "ClusterQueue":
        yield from _group_faults(document["spec"], file)
    elif kind == "Secret" and {"auth_token"} & {*document.get("data", {}), *document.get("stringData", {})}:
        yield Fault(
            file, "data.auth_token", "is a token in a file: let KubeRay make one, by authOptions.mode: token alone"
        )


def _job_faults(document: dict[str, Any], file: str, versions: Versions | None) -> Iterator[Fault]:
    spec, labels = document["spec"], document["metadata"].get("labels", {})
    if len(document["metadata"]["name"]) > _LONGEST_NAME:
        yield Fault(
            file, "metadata.name", f"has more than {_LONGEST_NAME} characters, and KubeRay adds some of its own"
        )
    if not spec.get("entrypoint") and spec.get("submissionMode") != "InteractiveMode":
        yield Fault(file, "spec.entrypoint", "is not there, so that nothing would run: add it")
    if "rayClusterSpec" not in spec and "clusterSelector" not in spec:
        yield Fault(file, "spec.rayClusterSpec", "is not there, nor a clusterSelector: the job has nowhere to run")
    if not spec.get("shutdownAfterJobFinishes"):
        yield Fault(
            file,
            "spec.shutdownAfterJobFinishes",
            "is not true: the cluster stays and costs, and Kueue admits no such job",
        )
    if QUEUE in labels:
        if not spec.get("suspend"):
            yield Fault(file, "spec.suspend", "is not true: the job would start before Kueue has room for it")
        if "clusterSelector" in spec:
            yield Fault(
                file, "spec.clusterSelector", f"Kueue admits no job on a cluster that is there: leave it or {QUEUE} out"
            )
        if spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
            yield Fault(
                file,
                "spec.rayClusterSpec.enableInTreeAutoscaling",
                "a cluster that grows takes more than Kueue has given: leave it out",
            )
        if len(spec.get("rayClusterSpec", {}).get("workerGroupSpecs", [])) > _MOST_GROUPS:
            yield Fault(
                file, "spec.rayClusterSpec.workerGroupSpecs", f"are more than {_MOST_GROUPS}, and Kueue admits no more"
            )
    try:
        if not isinstance(json.loads(spec.get("entrypointResources", "{}")), dict):
            raise ValueError("no mapping")
    except ValueError as error:
        yield Fault(file, "spec.entrypointResources", f"is not JSON such as '{{\"job_slot\": 1}}' ({error})")
    yield from _runtime_faults(spec.get("runtimeEnvYAML", ""), file)
    for index, container in enumerate(_containers(spec.get("submitterPodTemplate", {}))):
        yield from _container_faults(container, file, f"spec.submitterPodTemplate.spec.containers[{index}]", versions)
    if "rayClusterSpec" in spec:
        yield from _cluster_faults(spec["rayClusterSpec"], file, "spec.rayClusterSpec", versions)


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


def _cluster_faults(spec: dict[str, Any], file: str, key: str, versions: Versions | None) -> Iterator[Fault]:
    if spec.get("authOptions", {}).get("mode") != "token":
        yield Fault(
            file,
            f"{key}.authOptions.mode",
            "is not token: whoever reaches a port of this cluster runs code in it; say token",
        )
    if versions is not None:
        yield from versions.ray_faults(str(spec.get("rayVersion", "not there")), file, f"{key}.rayVersion")
    head, at = spec["headGroupSpec"], f"{key}.headGroupSpec"
    yield from _head_faults(head, file, at)
    groups = [(at, head)]
    for index, group in enumerate(spec.get("workerGroupSpecs", [])):
        below = f"{key}.workerGroupSpecs[{index}]"
        groups.append((below, group))
        low, high = group["minReplicas"], group["maxReplicas"]
        if low > high:
            yield Fault(file, f"{below}.minReplicas", f"is {low}, and maxReplicas {high}: lower it")
        elif not low <= group.get("replicas", low) <= high:
            yield Fault(file, f"{below}.replicas", f"is {group['replicas']}, and must be between {low} and {high}")
    for below, group in groups:
        for index, container in enumerate(_containers(group["template"])):
            yield from _container_faults(container, file, f"{below}.template.spec.containers[{index}]", versions)


def _head_faults(head: dict[str, Any], file: str, key: str) -> Iterator[Fault]:
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


def _containers(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    return template.get("spec", {}).get("containers", [])


def _container_faults(container: dict[str, Any], file: str, key: str, versions: Versions | None) -> Iterator[Fault]:
    if versions is not None:
        yield from versions.image_faults(str(container.get("image", "")), file, f"{key}.image")
    for index, variable in enumerate(container.get("env", [])):
        if variable["name"] == "RAY_AUTH_TOKEN" and variable.get("value"):
            yield Fault(file, f"{key}.env[{index}]", "is a token in clear: leave it to authOptions.mode: token")
        if variable["name"] == "RAY_AUTH_MODE" and variable.get("value") != "token":
            yield Fault(file, f"{key}.env[{index}]", "overrides authOptions: leave it out")
    if container.get("securityContext", {}).get("privileged"):
        yield Fault(
            file, f"{key}.securityContext.privileged", "makes whoever runs a job the owner of the machine: leave it out"
        )
    for name, asked in container.get("resources", {}).get("requests", {}).items():
        limit = container["resources"].get("limits", {}).get(name)
        if limit is not None and (quantity(asked) or 0) > (quantity(limit) or 0):
            yield Fault(file, f"{key}.resources.requests.{name}", f"is {asked}, and the limit {limit}: lower it")


# --- between documents ------------------------------------------------------------------------------------------------


def _group_faults(spec: dict[str, Any], file: str) -> Iterator[Fault]:
    for index, group in enumerate(spec.get("resourceGroups", [])):
        covered = group["coveredResources"]
        for flavor in group["flavors"]:
            named = [resource["name"] for resource in flavor["resources"]]
            if named != covered:
                yield Fault(
                    file,
                    f"spec.resourceGroups[{index}].flavors",
                    f"{flavor['name']} has quotas of {', '.join(named)}, and must "
                    f"have those of {', '.join(covered)}, in this order",
                )


def _queue_faults(documents: Sequence[Source]) -> Iterator[Fault]:
    of = {kind: {d["metadata"]["name"]: d for _, d in documents if d["kind"] == kind} for kind in _QUEUEING}
    for file, document in documents:
        labels = document["metadata"].get("labels", {})
        for label, kind in ((QUEUE, "LocalQueue"), (PRIORITY, "WorkloadPriorityClass")):
            if label in labels and of[kind] and labels[label] not in of[kind]:
                yield Fault(
                    file,
                    f"metadata.labels.{label}",
                    f"there is no {kind} '{labels[label]}'; {nearest(labels[label], of[kind])}",
                )
        if document["kind"] == "LocalQueue" and of["ClusterQueue"]:
            name = document["spec"]["clusterQueue"]
            if name not in of["ClusterQueue"]:
                yield Fault(
                    file, "spec.clusterQueue", f"there is no ClusterQueue '{name}'; {nearest(name, of['ClusterQueue'])}"
                )
        if document["kind"] == "ClusterQueue":
            for group in document["spec"].get("resourceGroups", []):
                for flavor in group["flavors"]:
                    if flavor["name"] not in of["ResourceFlavor"]:
                        yield Fault(
                            file,
                            "spec.resourceGroups",
                            f"there is no ResourceFlavor '{flavor['name']}', so that the queue stays "
                            f"closed; {nearest(flavor['name'], of['ResourceFlavor'])}",
                        )
        if document["kind"] == "RayJob" and labels.get(QUEUE) in of["LocalQueue"]:
            queue = of["ClusterQueue"].get(of["LocalQueue"][labels[QUEUE]]["spec"]["clusterQueue"])
            if queue is not None:
                yield from _quota_faults(document["spec"], queue["spec"], file)


_QUEUEING = ("LocalQueue", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass")


def _quota_faults(job: dict[str, Any], queue: dict[str, Any], file: str) -> Iterator[Fault]:
    """A job that would wait for ever: more of something than all flavors of its queue have together."""
    cluster = job.get("rayClusterSpec")
    if cluster is None:
        return
    pods = [(cluster["headGroupSpec"]["template"], 1), (job.get("submitterPodTemplate", {}), 1)]
    pods += [(group["template"], group.get("replicas", 0)) for group in cluster.get("workerGroupSpecs", [])]
    asked: dict[str, float] = {}
    for template, count in pods:
        for container in _containers(template):
            for name, value in container.get("resources", {}).get("requests", {}).items():
                asked[name] = asked.get(name, 0.0) + count * (quantity(value) or 0.0)
    quotas: dict[str, float] = {}
    for group in queue.get("resourceGroups", []):
        for flavor in group["flavors"]:
            for resource in flavor["resources"]:
                quotas[resource["name"]] = quotas.get(resource["name"], 0.0) + (
                    quantity(resource["nominalQuota"]) or 0.0
                )
    for name, amount in asked.items():
        if name not in quotas:
            yield Fault(
                file, "spec.rayClusterSpec", f"asks for {name}, which the queue does not cover: Kueue never admits it"
            )
        elif amount > quotas[name]:
            yield Fault(
                file,
                "spec.rayClusterSpec",
                f"asks for {amount:g} {name} in all, and the queue has {quotas[name]:g}: it would wait "
                "for ever; ask for less",
            )
