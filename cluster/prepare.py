"""From configs to jobs that would run on a cluster: what each is called, how it is started, and what is refused before.

A job is `python -m stillgrain run CONFIG key=value ...` in a copy of the working directory, whatever the head's PATH
and directory are. It gets no environment variables from here: those, the command and the metadata are shown by Ray to
whoever asks. What a job needs to know in secret belongs into the environment of the nodes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import SubmitError
from cluster.package import Contents, commit_of, contents
from cluster.room import Bundles

Resolve = Callable[[Path, Sequence[str]], str]
"""A config's path and `key=value` words -> the whole config as YAML, with every default, its paths absolute. What
`stillgrain check` prints; raises for a config that would not run."""

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
# Folders that a workload writes. A relative one would lie in Ray's copy of the working directory, which Ray removes.
_WRITTEN = {"storage", "stores", "output"}
_SECRET_KEY = re.compile(
    r"(^|[._-])(password|passwd|secret|token|api[_-]?key|access[_-]?key|credentials?)([._-]|$)", re.I
)
_SECRET_IN_URI = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
# Longer ones would not fit into the environment in which Ray hands metadata to a job.
_MAX_CONFIG_CHARS = 48_000
# The interpreter that Ray itself runs in: this shell's parent is Ray's supervisor of the job, which has loaded Ray's
# library from <environment>/lib/pythonX.Y/site-packages. The head's PATH may name any other Python, or none.
_PYTHON = (
    'p=$(sed -n "s|^[^/]*\\(/.*\\)/lib/python[0-9.]*/[a-z]*-packages/ray/_raylet[.].*$|\\1/bin/python|p" '
    '"/proc/$PPID/maps" 2>/dev/null | head -n 1); [ -x "$p" ] || p=$(command -v python3 || command -v python)'
)


@dataclass(frozen=True)
class Prepared:
    """One job, ready to be submitted."""

    name: str
    config: str
    """Path in the working directory."""
    words: tuple[str, ...]
    resolved: str
    """The whole config as YAML, with paths as they are true there; nothing where it is too long to go along."""
    resources: Mapping[str, float]
    """Of all its workers."""
    bundles: Bundles | None
    settings: Mapping[str, Any]
    """The whole config."""


@dataclass(frozen=True)
class Batch:
    """Jobs that are submitted together."""

    travels: Contents
    commit: Mapping[str, str]
    jobs: tuple[Prepared, ...]


def prepare(
    configs: Sequence[str | Path],
    words: Sequence[str],
    *,
    resolve: Resolve,
    working_dir: str | Path,
    name: str | None = None,
    grid: Sequence[str] = (),
) -> Batch:
    """See `cluster.submit.submit` for what each means.

    raises  SubmitError saying what is wrong, and whatever `resolve` raises
    """
    files = config_files(configs)
    if name is not None and len(files) != 1:
        raise SubmitError(f"name: '{name}' is for one job, and there are {len(files)} configs: leave it out")
    travels = contents(Path(working_dir).resolve())
    points = grid_points(grid)
    jobs = tuple(_prepare(file, words, resolve, travels, name, point) for file in files for point in points)
    return Batch(travels, commit_of(travels.folder), jobs)


def entrypoint(config: str, words: Sequence[str] = ()) -> str:
    """The shell command that runs a config of the working directory, in Ray's own Python."""
    return f'{_PYTHON}; exec "$p" -m stillgrain run {shlex.join([config, *words])}'


def grid_points(grid: Sequence[str]) -> list[list[str]]:
    """The product of `key=a,b,c` words: each point as its `key=value` words; one empty point without any.

    raises  SubmitError for what is no such word
    """
    axes = []
    for word in grid:
        key, equals, values = word.partition("=")
        parts = _split(values)
        if not equals or not key or not all(parts):
            raise SubmitError(f"sweep-grid: '{word}' is not KEY=VALUE,VALUE,...: give optim.lr=1e-3,3e-3")
        if len(set(parts)) < len(parts):
            raise SubmitError(f"sweep-grid: '{word}' names a value twice")
        axes.append([f"{key}={value}" for value in parts])
    keys = [axis[0].partition("=")[0] for axis in axes]
    if len(set(keys)) < len(keys):
        raise SubmitError(f"sweep-grid: {', '.join(keys)} names a key twice: give all its values in one word")
    return [list(point) for point in itertools.product(*axes)]


def _split(values: str) -> list[str]:
    """At the commas that lie in no bracket: `[a,b],[c]` are two values."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def declared_bundles(config: Mapping[str, Any]) -> Bundles | None:
    """What must be there before a job can begin: all workers of a training that is not elastic; of actors, which share
    what there is, one."""
    scaling = config.get("scaling")
    if not isinstance(scaling, Mapping):
        return None
    workers = (scaling["min_workers"] or scaling.get("workers", 1)) if "min_workers" in scaling else 1
    each = {
        "CPU": float(scaling.get("cpus_per_worker", 1)),
        "GPU": float(scaling.get("gpus_per_worker", 0)),
    }
    return Bundles(int(workers), {resource: amount for resource, amount in each.items() if amount}) if workers else None


def declared_resources(config: Mapping[str, Any]) -> dict[str, float]:
    """What a config's `scaling` asks for: {"CPU": 4, "GPU": 2}. Elastic ones count with the fewest workers that they
    start with."""
    scaling = config.get("scaling")
    if not isinstance(scaling, Mapping):
        return {}
    workers = scaling.get("min_workers") or scaling.get("workers", 1)
    asked = {
        "CPU": float(workers * scaling.get("cpus_per_worker", 1)),
        "GPU": float(workers * scaling.get("gpus_per_worker", 0)),
    }
    return {resource: amount for resource, amount in asked.items() if amount}


def config_files(configs: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, configs):
        below = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        if not below:
            raise SubmitError(f"{path}: holds no *.yaml")
        files += below
    if not files:
        raise SubmitError("no config is given")
    return files


def _prepare(
    file: Path, words: Sequence[str], resolve: Resolve, travels: Contents, name: str | None, point: Sequence[str]
) -> Prepared:
    inside = _inside(file.resolve(), travels.folder)
    if inside is None or inside not in travels:
        why = "it lies outside" if inside is None else ".gitignore or .rayignore names it"
        raise SubmitError(f"{file}: does not travel with the working directory {travels.folder}, since {why}: move it")
    words = [*words, *point]
    _refuse_secrets(file, words)
    with _working_in(travels.folder):
        config = yaml.safe_load(resolve(Path(inside), words))
        job_name = name or _own_name(config) or Path(inside).stem
        if point:
            # What the config itself says is checked before its place is made another, which is then absolute.
            _checked_paths(config, _given_texts(travels.folder / inside, words), travels, str(file))
            job_name = f"{job_name}-{_label_of(point)}"
            words = [*words, _place_of(config, job_name, point)]
            config = yaml.safe_load(resolve(Path(inside), words))
    resolved = _checked_paths(config, _given_texts(travels.folder / inside, words), travels, str(file))
    _refuse_secrets_in(resolved, str(file))
    if not NAME.match(job_name):
        raise SubmitError(f"name: '{job_name}' may hold letters, digits, dot, dash and underscore, up to 128")
    shown = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=120)
    return Prepared(
        name=job_name,
        config=inside,
        words=tuple(words),
        resolved=shown if len(shown) <= _MAX_CONFIG_CHARS else "",
        resources=declared_resources(config),
        bundles=declared_bundles(config),
        settings=config,
    )


def _own_name(config: Mapping[str, Any]) -> str | None:
    """A run's. What `infer` calls name is a template for its files."""
    return str(config["name"]) if config.get("name") and "storage" in config else None


def _label_of(point: Sequence[str]) -> str:
    """A point of a grid as part of a name: `lr=0.001,width=8` is lr-0.001-width-8."""
    parts = []
    for word in point:
        key, _, value = word.partition("=")
        parts += [key.rpartition(".")[2], value]
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-.")


def _place_of(config: Mapping[str, Any], job_name: str, point: Sequence[str]) -> str:
    """The word that lets each job of a grid write into a folder of its own.

    raises  SubmitError where there is no such key
    """
    if _own_name(config) is not None:
        return f"name={job_name}"
    if isinstance(config.get("output"), str):
        return f"output={config['output'].rstrip('/')}/{_label_of(point)}"
    raise SubmitError(
        f"sweep-grid: a workload '{config.get('workload')}' has neither name nor output, so its jobs would write into "
        "one place: submit them one by one"
    )


def _inside(path: Path, folder: Path) -> str | None:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Relative paths of a config count from where the job will run: the working directory."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# --- paths ------------------------------------------------------------------------------------------------------------


def _given_texts(file: Path, words: Sequence[str]) -> set[str]:
    """Every text that the config and the words hold as they stand, before anything is made of it."""
    values: list[Any] = [yaml.safe_load(file.read_text(encoding="utf-8"))]
    for word in words:
        with contextlib.suppress(yaml.YAMLError):
            values.append(yaml.safe_load(word.partition("=")[2]))
    return {value for _, value in _leaves(values)}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts of plain data, each with its dotted key."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _leaves(below, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for below in value:
            yield from _leaves(below, key)
    elif isinstance(value, str):
        yield key, value


def _checked_paths(config: Any, given: set[str], travels: Contents, source: str) -> Any:
    """The config as it is true on the cluster too: paths into the working directory are relative again.

    Validating made all paths absolute. One that lies in the working directory, though nobody wrote it like that, was a
    relative one: it must travel.

    raises  SubmitError for one that does not, one that would be written into Ray's copy, and a home folder's
    """
    problems: list[str] = []
    for key, value in _leaves(config):
        if value in given:
            continue
        relative = _inside(Path(value), travels.folder) if os.path.isabs(value) else None
        if relative is not None and _written(key):
            problems.append(
                f"{source}: {key}: {relative} is relative, and would be written into Ray's copy of the working "
                f"directory, which Ray removes: give {key}=/a/folder/that/every/node/sees, or a URI"
            )
        elif relative is not None and relative not in travels:
            problems.append(
                f"{source}: {key}: {relative} is relative, and does not travel with the working directory: give "
                "an absolute path that every node sees, or a URI"
            )
    for text in given:
        if text.startswith("~"):
            problems.append(f"{source}: {text}: the cluster has another home folder: give an absolute path, or a URI")
    if problems:
        raise SubmitError("\n".join(problems))
    return _mapped(config, lambda v: v if v in given or not os.path.isabs(v) else _inside(Path(v), travels.folder) or v)


def _written(key: str) -> bool:
    return key.rpartition(".")[2] in _WRITTEN


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _mapped(below, change) for key, below in value.items()}
    if isinstance(value, list):
        return [_mapped(below, change) for below in value]
    return change(value) if isinstance(value, str) else value


# --- secrets ----------------------------------------------------------------------------------------------------------


def _refuse_secrets(file: Path, words: Sequence[str]) -> None:
    for word in words:
        key, _, value = word.partition("=")
        _refuse_secret(key, value, str(file))


def _refuse_secrets_in(config: Any, source: str) -> None:
    for key, value in _leaves(config):
        _refuse_secret(key, value, source)


def _refuse_secret(key: str, value: str, source: str) -> None:
    known = [v for k, v in os.environ.items() if _SECRET_KEY.search(k) and len(v) >= 8]
    if (value and _SECRET_KEY.search(key)) or _SECRET_IN_URI.search(value) or any(secret in value for secret in known):
        # The value itself is not repeated: this message may end in a log.
        raise SubmitError(
            f"{source}: {key}: looks like a secret, and a job's command and metadata are shown by Ray to whoever asks: "
            "set it in the environment of the nodes"
        )
