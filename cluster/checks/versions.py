"""The versions that have to agree: constraints.txt, the image's tag and its Dockerfile, and what manifests say of Ray.

An image's tag is its versions: `NAME:py3.11-ray2.60.0-torch2.13.0`. The build of cluster/Dockerfile fails if it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.checks.faults import Fault

CONSTRAINTS = "constraints.txt"
_TAG = re.compile(r"^py(?P<python>\d+\.\d+)-ray(?P<ray>[\w.+]+)-torch(?P<torch>[\w.+]+)$")
_FORM = "pyX.Y-rayX.Y.Z-torchX.Y.Z"


@dataclass(frozen=True)
class Versions:
    """What constraints.txt pins."""

    ray: str
    torch: str

    def tag_faults(self, tag: str, file: str, key: str) -> Iterator[Fault]:
        found = _TAG.match(tag)
        if found is None:
            yield Fault(file, key, f"the tag '{tag}' does not say what is in the image: build one tagged {_FORM}")
            return
        for name, wanted in (("ray", self.ray), ("torch", self.torch)):
            if found[name] != wanted:
                yield Fault(
                    file,
                    key,
                    f"the image has {name} {found[name]}, and {CONSTRAINTS} {wanted}: jobs would find another {name} "
                    f"than they were tested with; build it anew and change the tag",
                )

    def image_faults(self, image: str, file: str, key: str) -> Iterator[Fault]:
        """image  REGISTRY/NAME:TAG, or with @DIGEST behind it"""
        name, _, tag = image.partition("@")[0].rpartition(":")
        if not name or "/" in tag:
            yield Fault(file, key, f"'{image}' has no tag, so that it is another image each day: add :{_FORM}")
        else:
            yield from self.tag_faults(tag, file, key)

    def ray_faults(self, version: str, file: str, key: str) -> Iterator[Fault]:
        if version != self.ray:
            yield Fault(file, key, f"is {version}, and {CONSTRAINTS} pins ray {self.ray}: make them the same")


def read_versions(folder: Path) -> Versions | None:
    """Of the constraints.txt in this folder or the nearest above it; None if there is none that pins ray and torch."""
    for place in (folder, *folder.parents):
        if (place / CONSTRAINTS).is_file():
            text = (place / CONSTRAINTS).read_text(encoding="utf-8")
            pins = dict(re.findall(r"^([\w.-]+)==([\w.+]+)\s*(?:#.*)?$", text, flags=re.MULTILINE))
            return Versions(pins["ray"], pins["torch"]) if {"ray", "torch"} <= pins.keys() else None
    return None


def dockerfile_faults(text: str, file: str, versions: Versions) -> Iterator[Fault]:
    """A Dockerfile whose default tag is not what it builds."""
    base = re.search(r"^FROM\s+(?:\S+/)?python:(\d+\.\d+)", text, flags=re.MULTILINE)
    tag = re.search(r"^ARG\s+TAG=(\S+)", text, flags=re.MULTILINE)
    if base is None:
        yield Fault(file, "FROM", "is no python:X.Y image, so that its Python is unknown here: start from one")
    if tag is None:
        yield Fault(file, "ARG TAG", f"is not there, so that nothing says what the image holds: add ARG TAG={_FORM}")
    else:
        yield from versions.tag_faults(tag[1], file, "ARG TAG")
        found = _TAG.match(tag[1])
        if base is not None and found is not None and found["python"] != base[1]:
            yield Fault(file, "ARG TAG", f"says Python {found['python']}, and FROM is Python {base[1]}: change one")
    if not re.search(rf"--constraint[= ]\S*{re.escape(CONSTRAINTS)}", text):
        yield Fault(file, "RUN", f"installs without --constraint {CONSTRAINTS}: versions would be those of the day")
    if re.search(
        r"^(COPY|ADD)\s+(\S+\s+)*(\.|\./|library|workloads|cluster|stillgrain\.py)/?\s+\S+$", text, re.MULTILINE
    ):
        yield Fault(file, "COPY", "puts our code into the image, which would be found before the one that a job brings")
