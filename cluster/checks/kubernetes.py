"""Faults of manifests for KubeRay and Kueue: fields that are none, and what both accept and jobs then suffer from."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.checks import kuberay, kueue
from cluster.checks.faults import Fault, nearest, secrets_in
from cluster.checks.pods import quantity
from cluster.checks.versions import Versions

# Names of objects (RFC 1123), and of those that become the name of a service (RFC 1035).
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
# All annotations of an object together.
_MOST_ANNOTATED = 262_144


def manifest_faults(documents: Sequence[tuple[str, Any]], versions: Versions | None) -> list[Fault]:
    """All of them, also those between documents: a queue that is not there, a request that no quota holds.

    documents  (file, document); queues and priorities are looked for only where there are any
    versions   None leaves out what compares with constraints.txt
    """
    faults: list[Fault] = []
    sound: list[kueue.Source] = []
    for file, document in documents:
        found = list(_form_faults(document, file))
        found += secrets_in(document, file)
        if not found:
            sound.append((file, document))
        faults += found
    for file, document in sound:
        faults += _own_faults(document, file, versions)
    faults += kueue.reference_faults(sound)
    return faults


def _own_faults(document: dict[str, Any], file: str, versions: Versions | None) -> Iterator[Fault]:
    kind, metadata, spec = document["kind"], document["metadata"], document.get("spec", {})
    yield from _name_faults(kind, metadata["name"], file)
    if sum(len(f"{name}{text}".encode()) for name, text in metadata.get("annotations", {}).items()) > _MOST_ANNOTATED:
        yield Fault(file, "metadata.annotations", f"are more than {_MOST_ANNOTATED} bytes: leave some out")
    if kind == "RayCluster":
        yield from kuberay.cluster_faults(spec, file, "spec", versions, metadata.get("annotations", {}))
    elif kind == "RayJob":
        yield from kuberay.job_faults(document, file, versions)
    elif kind == "ResourceFlavor":
        yield from kueue.flavor_faults(spec, file)
    elif kind == "ClusterQueue":
        yield from kueue.queue_faults(spec, file)
    elif kind == "Secret" and {"auth_token"} & {*document.get("data", {}), *document.get("stringData", {})}:
        yield Fault(
            file, "data.auth_token", "is a token in a file: let KubeRay make one, by authOptions.mode: token alone"
        )
    if kind in kuberay.LONGEST_NAMES:
        yield from kueue.waiting_faults(document, file)


def _name_faults(kind: str, name: str, file: str) -> Iterator[Fault]:
    key, most = "metadata.name", kuberay.LONGEST_NAMES.get(kind)
    if most is not None and len(name) > most:
        yield Fault(file, key, f"has more than {most} characters, and KubeRay adds some of its own")
    elif most is not None and not _SERVICE.fullmatch(name):
        yield Fault(file, key, f"'{name}' may hold small letters, digits and dashes only, a letter first")
    elif most is None and not _fits(name, "dns_label" if kind == "Namespace" else "dns"):
        yield Fault(file, key, f"'{name}' may hold small letters, digits and dashes only")


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
        yield from _count_faults(value, shape[1:], file, key)
        for index, one in enumerate(value):
            yield from _shape_faults(one, shape[0], file, f"{key}[{index}]")
    elif shape.startswith("{"):
        if not isinstance(value, Mapping):
            yield Fault(file, key, f"must be a mapping, and is {value!r}")
            return
        kind, *count = shape[1:-1].split(", ")
        yield from _count_faults(value, count, file, key)
        for name, one in value.items():
            below = f"{key}.{name}"
            if kind != "text" and not _is_key(str(name)):
                yield Fault(file, below, "is no key such as example.com/name, its name of at most 63 characters")
            yield from _shape_faults(one, kind, file, below)
    elif not _fits(value, shape):
        yield Fault(file, key, f"must be {_wanted(shape)}, and is {value!r}")


_SAID = {
    "any": "anything",
    "text": "a text (a number or yes/no needs quotes)",
    "note": "a text (a number or yes/no needs quotes)",
    "label": "a text of at most 63 letters, digits, - _ . (a number or yes/no needs quotes)",
    "dns": "a name of small letters, digits, dashes and dots",
    "dns_label": "a name of at most 63 small letters, digits and dashes",
    "integer": "a whole number of 32 bits",
    "whole": "a whole number of at least 0",
    "positive": "a whole number of at least 1",
    "port": "a port, 1 to 65535",
    "number": "a number",
    "yes_no": "true or false",
    "quantity": "a quantity such as 500m, 8 or 16Gi",
}
# Those of KubeRay and Kueue are of 32 bits.
_RANGES = {"integer": (-(2**31), 2**31), "whole": (0, 2**31), "positive": (1, 2**31), "port": (1, 65536)}


def _wanted(shape: str) -> str:
    kind, _, size = shape.partition(" ")
    if kind not in _SAID:
        return f"one of {', '.join(shape.split('|'))}"
    return f"{_SAID[kind]} of {size.replace('..', ' to ')} characters" if size else _SAID[kind]


def _fits(value: Any, shape: str) -> bool:
    kind, _, size = shape.partition(" ")
    if kind not in _SAID:
        return value in shape.split("|")
    if kind in _RANGES:
        return isinstance(value, int) and not isinstance(value, bool) and value in range(*_RANGES[kind])
    if kind in ("any", "number", "yes_no", "quantity"):
        return {
            "any": True,
            "number": isinstance(value, int | float) and not isinstance(value, bool),
            "yes_no": isinstance(value, bool),
            # None of those here may be below 0.
            "quantity": (amount := quantity(value)) is not None and amount >= 0,
        }[kind]
    return (
        isinstance(value, str)
        and {
            "text": not size or len(value) in _sizes(size),
            "note": True,
            "label": not value or (len(value) <= 63 and _WORD.fullmatch(value) is not None),
            "dns": len(value) <= 253 and _NAME.fullmatch(value) is not None,
            "dns_label": len(value) <= 63 and re.fullmatch(_LABEL, value) is not None,
        }[kind]
    )


def _sizes(size: str) -> range:
    """1..8, or 1.. for any number."""
    low, _, high = size.partition("..")
    return range(int(low), int(high or 2**31) + 1)


def _count_faults(value: Any, sizes: Sequence[str], file: str, key: str) -> Iterator[Fault]:
    for size in sizes:
        if len(value) not in _sizes(size):
            low, high = _sizes(size).start, size.partition("..")[2]
            wanted = f"{low} to {high}" if high else f"at least {low}"
            yield Fault(file, key, f"must be {wanted}, and are {len(value)}")


def _is_key(name: str) -> bool:
    """As app.kubernetes.io/part-of, or without a domain."""
    domain, slash, word = name.rpartition("/")
    return (not slash or _fits(domain, "dns")) and len(word) <= 63 and _WORD.fullmatch(word) is not None


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
