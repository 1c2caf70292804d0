"""Faults of the files that launch a cluster, found on this machine, without one.

    stillgrain cluster check                       # all that this repository ships
    stillgrain cluster check cluster.yaml my-jobs.yaml

What a file is, its content says: a file for `ray up`, manifests for Kubernetes, a Dockerfile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checks.faults import MOST_BYTES, Fault, read_yaml
from cluster.checks.kubernetes import manifest_faults
from cluster.checks.launcher import launcher_faults
from cluster.checks.versions import CONSTRAINTS, Versions, dockerfile_faults, read_versions
from cluster.errors import ClusterError

SHIPPED = ("cluster.yaml", "cluster/*.yaml", "cluster/kuberay/*.yaml", "cluster/Dockerfile")
"""Below the top folder."""


class CheckError(ClusterError):
    """Nothing to check."""


@dataclass(frozen=True)
class Findings:
    """What was looked at, and all that is wrong with it."""

    files: tuple[str, ...]
    faults: tuple[Fault, ...]

    def to_json(self) -> dict[str, Any]:
        return {"files": list(self.files), "faults": [fault.to_json() for fault in self.faults]}

    def __str__(self) -> str:
        found = "no faults" if not self.faults else f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
        lines = [*map(str, self.faults), f"{len(self.files)} file{'s' if len(self.files) != 1 else ''}: {found}"]
        return "\n".join(lines)


def check(files: Sequence[str | Path] = (), folder: str | Path = ".", *, home: str | Path | None = None) -> Findings:
    """Look for faults.

    files    left out, all of `SHIPPED`; manifests among them are held against each other
    folder   top folder of the repository, where constraints.txt lies
    home     where the token lies that `ray up` would copy; left out, this user's
    returns  all faults, none of which stops the search for the others
    raises   CheckError when there is no such file
    """
    top = Path(folder)
    paths = [Path(file) for file in files] or sorted(path for pattern in SHIPPED for path in top.glob(pattern))
    for path in paths:
        if not path.is_file():
            raise CheckError(f"{path}: is not there; give a file for `ray up`, a manifest or a Dockerfile")
    if not paths:
        raise CheckError(
            f"{top.resolve()}: holds none of {', '.join(SHIPPED)}: name a file, or go to the repository's top"
        )
    versions = read_versions(top.resolve())
    faults: list[Fault] = []
    if versions is None:
        faults.append(
            Fault(CONSTRAINTS, "", f"none above {top.resolve()} pins ray and torch: versions are not compared")
        )
    documents: list[tuple[str, Any]] = []
    for path in paths:
        faults += _faults_of(path, versions, Path(home) if home is not None else Path.home(), documents)
    faults += manifest_faults(documents, versions)
    return Findings(tuple(map(str, paths)), tuple(faults))


def _faults_of(path: Path, versions: Versions | None, home: Path, documents: list[tuple[str, Any]]) -> list[Fault]:
    """Of a file by itself; its manifests are put into `documents`, to be looked at together."""
    file = str(path)
    if path.stat().st_size > MOST_BYTES:
        return [Fault(file, "", f"has more than {MOST_BYTES} bytes: this is no file for a cluster")]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return [Fault(file, "", f"cannot be read: {error}")]
    if path.name.startswith("Dockerfile") or path.suffix == ".Dockerfile":
        return list(dockerfile_faults(text, file, versions)) if versions is not None else []
    found, faults = read_yaml(text, file)
    if any(isinstance(document, dict) and {"apiVersion", "kind"} & document.keys() for document in found):
        documents += [(file, document) for document in found]
    elif found:
        faults += launcher_faults(found[0], file, versions, home)
    elif not faults:
        faults.append(Fault(file, "", "is empty"))
    return faults
