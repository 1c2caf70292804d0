"""Faults of what waits in Kueue's queues and of the queues: what its webhooks refuse, and what would wait for ever."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.checks.faults import Fault, nearest
from cluster.checks.pods import containers, quantity, requests, toleration_faults

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
# Kueue 0.15 admits at most eight sets of pods at once (later ones ten): the head, the submitter where there is one, and
# the groups.
_MOST_SETS = 8
_SET = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# Of a queue, over all its groups; and of one group, flavors times resources.
_MOST_FLAVORS, _MOST_RESOURCES, _MOST_QUOTAS = 256, 256, 512

Source = tuple[str, dict[str, Any]]
"""A document, and the file it stands in."""


# --- one document -----------------------------------------------------------------------------------------------------


def waiting_faults(document: Mapping[str, Any], file: str) -> Iterator[Fault]:
    """Of a RayJob or a RayCluster that has the label of a queue."""
    spec = document["spec"]
    if QUEUE not in document["metadata"].get("labels", {}):
        return
    if spec.get("clusterSelector"):
        yield Fault(
            file, "spec.clusterSelector", f"Kueue admits no job on a cluster that is there: leave it or {QUEUE} out"
        )
        return
    if not spec.get("suspend"):
        yield Fault(file, "spec.suspend", "is not true: the job would start before Kueue has room for it")
    job = document["kind"] == "RayJob"
    cluster, key = (spec.get("rayClusterSpec", {}), "spec.rayClusterSpec") if job else (spec, "spec")
    submitted = job and spec.get("submissionMode", "K8sJobMode") == "K8sJobMode"
    if cluster.get("enableInTreeAutoscaling"):
        yield Fault(
            file,
            f"{key}.enableInTreeAutoscaling",
            "a cluster that grows takes more than Kueue has given: leave it out",
        )
    groups, most = cluster.get("workerGroupSpecs", []), _MOST_SETS - (2 if submitted else 1)
    if len(groups) > most:
        yield Fault(file, f"{key}.workerGroupSpecs", f"are more than {most}, and Kueue admits no more")
    taken = {"head", "submitter"} if submitted else {"head"}
    for index, group in enumerate(groups):
        name, at = group["groupName"].lower(), f"{key}.workerGroupSpecs[{index}].groupName"
        if name in taken:
            yield Fault(file, at, "is Kueue's name for other pods: call it workers")
        elif len(name) > 63 or not _SET.fullmatch(name):
            yield Fault(file, at, f"'{group['groupName']}' may hold at most 63 letters, digits and dashes")


def flavor_faults(spec: Mapping[str, Any], file: str) -> Iterator[Fault]:
    yield from toleration_faults(spec.get("tolerations", []), file, "spec.tolerations")
    if "topologyName" in spec and not spec.get("nodeLabels"):
        yield Fault(file, "spec.topologyName", "needs nodeLabels, by which Kueue finds the nodes: add them")
    taints = Counter((taint["key"], taint["effect"]) for taint in spec.get("nodeTaints", []))
    for (name, effect), count in taints.items():
        if count > 1:
            yield Fault(file, "spec.nodeTaints", f"{name} with {effect} stands there twice: leave one out")


def queue_faults(spec: Mapping[str, Any], file: str) -> Iterator[Fault]:
    """Of a ClusterQueue."""
    groups = spec.get("resourceGroups", [])
    yield from _group_faults(groups, bool(spec.get("cohortName")), file)
    preemption = spec.get("preemption", {})
    if (
        preemption.get("reclaimWithinCohort", "Never") == "Never"
        and preemption.get("borrowWithinCohort", {}).get("policy", "Never") != "Never"
    ):
        yield Fault(
            file, "spec.preemption.borrowWithinCohort", "needs reclaimWithinCohort, which is Never: say LowerPriority"
        )
    flavors = spec.get("flavorFungibility", {})
    # Kueue's own are MayStopSearch for borrowing, TryNextFlavor for preempting.
    if "preference" in flavors and (
        flavors.get("whenCanBorrow") != "TryNextFlavor"
        or flavors.get("whenCanPreempt", "TryNextFlavor") != "TryNextFlavor"
    ):
        yield Fault(
            file,
            "spec.flavorFungibility.preference",
            "needs TryNextFlavor for whenCanBorrow and whenCanPreempt: say so",
        )
    named = [flavor["name"] for group in groups for flavor in group["flavors"]]
    for index, check in enumerate(spec.get("admissionChecksStrategy", {}).get("admissionChecks", [])):
        for name in check.get("onFlavors", []):
            if name not in named:
                yield Fault(
                    file,
                    f"spec.admissionChecksStrategy.admissionChecks[{index}].onFlavors",
                    f"'{name}' is no flavor of this queue; {nearest(name, named)}",
                )
    if "concurrentAdmissionPolicy" in spec:
        key = "spec.concurrentAdmissionPolicy"
        if spec.get("queueingStrategy") == "StrictFIFO":
            yield Fault(file, key, "is nothing for StrictFIFO: leave it out, or say BestEffortFIFO")
        if len(groups) != 1 or len(named) > 16:
            yield Fault(file, key, "needs one resource group of at most 16 flavors: leave it out")


def _group_faults(groups: Sequence[Mapping[str, Any]], cohort: bool, file: str) -> Iterator[Fault]:
    resources = Counter(name for group in groups for name in group["coveredResources"])
    flavors = Counter(flavor["name"] for group in groups for flavor in group["flavors"])
    for what, counted, most in (("resource", resources, _MOST_RESOURCES), ("flavor", flavors, _MOST_FLAVORS)):
        for name, count in counted.items():
            if count > 1:
                yield Fault(file, "spec.resourceGroups", f"the {what} {name} stands there twice: leave one out")
        if counted.total() > most:
            yield Fault(file, "spec.resourceGroups", f"have {counted.total()} {what}s, and Kueue takes {most}")
    for index, group in enumerate(groups):
        key, covered = f"spec.resourceGroups[{index}]", group["coveredResources"]
        if len(covered) * len(group["flavors"]) > _MOST_QUOTAS:
            yield Fault(file, key, f"has more than {_MOST_QUOTAS} quotas: make two groups of it")
        for number, flavor in enumerate(group["flavors"]):
            named = [resource["name"] for resource in flavor["resources"]]
            if named != covered:
                yield Fault(
                    file,
                    f"{key}.flavors",
                    f"{flavor['name']} has quotas of {', '.join(named)}, and must "
                    f"have those of {', '.join(covered)}, in this order",
                )
            for place, resource in enumerate(flavor["resources"]):
                below = f"{key}.flavors[{number}].resources[{place}]"
                for limit in ("borrowingLimit", "lendingLimit"):
                    if limit in resource and not cohort:
                        yield Fault(file, f"{below}.{limit}", "there is nobody to share with: say cohortName too")
                if (quantity(resource.get("lendingLimit", 0)) or 0) > (quantity(resource["nominalQuota"]) or 0):
                    yield Fault(
                        file,
                        f"{below}.lendingLimit",
                        f"is {resource['lendingLimit']}, and nominalQuota {resource['nominalQuota']}: lower it",
                    )


# --- between documents ------------------------------------------------------------------------------------------------


def reference_faults(documents: Sequence[Source]) -> Iterator[Fault]:
    """Names that stand for nothing, and jobs that no queue can hold; looked for only where there are queues."""
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
            local = of["LocalQueue"][labels[QUEUE]]
            yield from _place_faults(document, local, file)
            queue = of["ClusterQueue"].get(local["spec"]["clusterQueue"])
            if queue is not None:
                yield from _quota_faults(document["spec"], queue["spec"], file)


_QUEUEING = ("LocalQueue", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass")


def _place_faults(job: Mapping[str, Any], local: Mapping[str, Any], file: str) -> Iterator[Fault]:
    own, queues = (document["metadata"].get("namespace") for document in (job, local))
    if own is not None and queues is not None and own != queues:
        yield Fault(
            file,
            "metadata.namespace",
            f"is {own}, and the LocalQueue {local['metadata']['name']} is of {queues}: a job sees those of its own",
        )


def _quota_faults(job: Mapping[str, Any], queue: Mapping[str, Any], file: str) -> Iterator[Fault]:
    """A job that would wait for ever: more of something than all flavors of its queue have together."""
    cluster = job.get("rayClusterSpec")
    # What a queue may borrow is not known here.
    if cluster is None or queue.get("cohortName"):
        return
    pods = [(cluster["headGroupSpec"]["template"], 1), (job.get("submitterPodTemplate", {}), 1)]
    for group in cluster.get("workerGroupSpecs", []):
        pods.append((group["template"], group.get("replicas", 0) * group.get("numOfHosts", 1)))
    asked: dict[str, float] = {}
    for template, count in pods:
        for container in containers(template):
            for name, value in requests(container).items():
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
