"""Faults of pods: what Kubernetes refuses of them whoever starts them, and what their owners then suffer from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.checks.faults import Fault, nearest
from cluster.checks.versions import Versions

_QUANTITY = re.compile(r"^(?P<number>[+-]?(\d+\.?\d*|\.\d+))(?P<unit>[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?$")
_UNITS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}


def quantity(value: object) -> float | None:
    """Kubernetes' quantities as numbers: 500m is 0.5, 16Gi is 2^34; None for what is none."""
    match = _QUANTITY.match(str(value))
    if match is None or isinstance(value, bool):
        return None
    unit = match["unit"] or ""
    return (
        float(str(value))
        if unit[:1] in ("e", "E") and len(unit) > 1
        else float(match["number"]) * _UNITS.get(unit, 1.0)
    )


def containers(template: Mapping[str, Any]) -> list[dict[str, Any]]:
    return template.get("spec", {}).get("containers", [])


def requests(container: Mapping[str, Any]) -> dict[str, Any]:
    """What it asks for: Kubernetes takes the limit where nothing is asked for."""
    resources = container.get("resources", {})
    asked = dict(resources.get("requests", {}))
    return asked | {name: most for name, most in resources.get("limits", {}).items() if name not in asked}


def template_faults(template: Mapping[str, Any], file: str, key: str, versions: Versions | None) -> Iterator[Fault]:
    """key  where the template stands, as spec.headGroupSpec.template"""
    spec = template.get("spec", {})
    yield from toleration_faults(spec.get("tolerations", []), file, f"{key}.spec.tolerations")
    volumes = [volume.get("name") for volume in spec.get("volumes", []) if isinstance(volume, Mapping)]
    named: set[str] = set()
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind, [])):
            below = f"{key}.spec.{kind}[{index}]"
            yield from container_faults(container, file, below, versions)
            if container["name"] in named:
                yield Fault(file, f"{below}.name", f"'{container['name']}' is another container's name: rename one")
            named.add(container["name"])
            for mount, one in enumerate(container.get("volumeMounts", [])):
                if one["name"] not in volumes:
                    yield Fault(
                        file,
                        f"{below}.volumeMounts[{mount}].name",
                        f"there is no volume '{one['name']}'; {nearest(one['name'], map(str, volumes))}",
                    )


def container_faults(container: dict[str, Any], file: str, key: str, versions: Versions | None) -> Iterator[Fault]:
    if versions is not None:
        yield from versions.image_faults(str(container.get("image", "")), file, f"{key}.image")
    for index, variable in enumerate(container.get("env", [])):
        if variable["name"] == "RAY_AUTH_TOKEN" and variable.get("value"):
            yield Fault(file, f"{key}.env[{index}]", "is a token in clear: leave it to authOptions.mode: token")
        if variable["name"] == "RAY_AUTH_MODE" and variable.get("value") != "token":
            yield Fault(file, f"{key}.env[{index}]", "overrides authOptions: leave it out")
        if "value" in variable and "valueFrom" in variable:
            yield Fault(file, f"{key}.env[{index}]", "has a value and a valueFrom: leave one out")
    if container.get("securityContext", {}).get("privileged"):
        yield Fault(
            file, f"{key}.securityContext.privileged", "makes whoever runs a job the owner of the machine: leave it out"
        )
    yield from resource_faults(container.get("resources", {}), file, f"{key}.resources")


def resource_faults(resources: Mapping[str, Any], file: str, key: str) -> Iterator[Fault]:
    limits = resources.get("limits", {})
    for name, asked in resources.get("requests", {}).items():
        limit = limits.get(name)
        # Devices are given whole: Kubernetes refuses a request that has no limit, or another.
        if "/" in name and (limit is None or quantity(asked) != quantity(limit)):
            yield Fault(
                file,
                f"{key}.requests.{name}",
                f"is {asked}, and the limit {'not there' if limit is None else limit}: make them the same",
            )
        elif limit is not None and (quantity(asked) or 0) > (quantity(limit) or 0):
            yield Fault(file, f"{key}.requests.{name}", f"is {asked}, and the limit {limit}: lower it")
    for kind, amounts in resources.items():
        for name, amount in amounts.items() if isinstance(amounts, Mapping) else ():
            if "/" in name and (quantity(amount) or 0.0) % 1:
                yield Fault(file, f"{key}.{kind}.{name}", f"is {amount}, and devices are given whole: say 1")


def toleration_faults(tolerations: Sequence[Mapping[str, Any]], file: str, key: str) -> Iterator[Fault]:
    for index, one in enumerate(tolerations):
        exists = one.get("operator") == "Exists"
        if not one.get("key") and not exists:
            yield Fault(file, f"{key}[{index}]", "has no key, which only operator: Exists may: add one of them")
        if exists and one.get("value"):
            yield Fault(
                file, f"{key}[{index}].value", "is nothing to compare with where operator is Exists: leave it out"
            )
        if "tolerationSeconds" in one and one.get("effect") != "NoExecute":
            yield Fault(file, f"{key}[{index}].tolerationSeconds", "needs effect: NoExecute")
