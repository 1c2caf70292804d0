"""The directions of import in house.md, held by walking every import in the tree, including those inside functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(f for top in ("cluster", "workloads", "library") for f in (ROOT / top).rglob("*.py"))
# What lies at which height inside library; a file may import what lies at its own height or below.
FLOORS = [
    {"errors", "memory"},
    {"config"},
    {"ops", "entropy"},
    {"files"},
    {"models", "codecs", "losses", "metrics", "rate_distortion"},
    {"datasets", "pairs"},
    {"training", "bundle", "codec_bundle", "sealed"},
    {"inference"},
    {"export"},
]

# What cluster/ may import besides the standard library: it runs on a laptop that may have no torch, and Ray is slow to
# import. Of Ray the job client, and the rules that must be Ray's own: what travels, and what `ray up` takes.
CLUSTER_MAY = {
    "ray": (
        "ray.job_submission",
        "ray.exceptions",
        "ray._private.runtime_env.packaging",
        "ray._private.ray_constants",
        "ray.autoscaler._private.util",
    ),
    "requests": (),
    "yaml": (),
    "jsonschema": (),
}


def modules_imported_by(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(module: str) -> int | None:
    parts = module.split(".")
    return next((i for i, names in enumerate(FLOORS) if parts[1] in names), None) if len(parts) > 1 else None


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_what_lies_below_it(file: Path) -> None:
    module = module_of(file)
    top = module.split(".")[0]
    for imported in modules_imported_by(file):
        name = imported.split(".")[0]
        if top == "library":
            assert name not in ("ray", "workloads", "cluster", "stillgrain"), f"{module} imports {imported}"
            mine, theirs = floor(module), floor(imported) if name == "library" else None
            if mine is not None and theirs is not None:
                assert theirs <= mine, f"{module} imports {imported}, which lies above it"
        elif top == "workloads":
            assert name not in ("cluster", "stillgrain"), f"{module} imports {imported}"
            if imported.startswith("ray.train"):
                assert module == "workloads.ray_train", f"{module} imports {imported}"
            if imported.startswith("ray.tune"):
                assert module == "workloads.sweep", f"{module} imports {imported}"
        else:
            assert name not in ("library", "workloads", "torch"), f"{module} imports {imported}"
            assert name in {"cluster", *CLUSTER_MAY, *sys.stdlib_module_names}, f"{module} imports {imported}"
            if name == "ray":
                assert imported.startswith(CLUSTER_MAY["ray"]), f"{module} imports {imported}"


@pytest.mark.parametrize("package", ["models", "codecs", "losses"])
def test_components_of_a_kind_do_not_know_each_other(package: str) -> None:
    kinds = {f.stem for f in (ROOT / "library" / package).glob("*.py")} - {"__init__"}
    for kind in kinds:
        for imported in modules_imported_by(ROOT / "library" / package / f"{kind}.py"):
            parts = imported.split(".")
            if parts[:2] == ["library", package] and len(parts) > 2:
                assert parts[2] not in kinds - {kind}, f"{package}/{kind}.py imports {imported}"


def test_every_folder_of_the_library_has_a_floor() -> None:
    inside = {p.stem for p in (ROOT / "library").iterdir() if not p.name.startswith("__")}
    assert inside <= set().union(*FLOORS)


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
