"""One config -> one job in the queue: what travels with it, how it is started, and what is refused before.

    stillgrain submit workloads/configs/denoise_rawnind.yaml storage=/data/runs --priority 5 --retries 5
    stillgrain submit experiments/ storage=s3://bucket/runs      # every *.yaml below, in the order of their names

A job is `python -m stillgrain run CONFIG key=value ...` in a copy of the working directory, whatever the head's PATH
and directory are. It gets no environment variables from here: those, the command and the metadata are shown by Ray to
whoever asks. What a job needs to know in secret belongs into the environment of the nodes.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import SubmitError
from cluster.jobqueue import DEFAULT_FOLDER
from cluster.package import Contents, commit_of, contents, megabytes, pack
from cluster.store import NewJob, Store

Resolve = Callable[[Path, Sequence[str]], str]
"""A config's path and `key=value` words -> the whole config as YAML, with every default, its paths absolute. What
`stillgrain check` prints; raises for a config that would not run."""

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
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


def submit(
    configs: Sequence[str | Path],
    words: Sequence[str] = (),
    *,
    resolve: Resolve,
    folder: str | Path = DEFAULT_FOLDER,
    working_dir: str | Path = ".",
    name: str | None = None,
    user: str | None = None,
    priority: int = 0,
    after: Sequence[str | int] = (),
    retries: int = 3,
    resources: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Put jobs into the queue, all or none. No cluster and no dispatcher need be there.

    configs      YAML files, or folders of them, in the working directory
    words        `key=value`, laid over every one
    resolve      see `Resolve`
    folder       the queue's
    working_dir  what travels
    name         of the job; left out, the config's own. One of them only where there is one config
    user         whose job it is: users take turns, and may be limited; left out, who is logged in
    priority     higher goes first
    after        numbers or names of jobs that must have succeeded before
    retries      further attempts when one does not end well; never after a user's error
    resources    of all its workers, as {"GPU": 4}; left out, what `scaling` in the config says
    returns      what travels, and the jobs: working_dir, num_files, num_bytes, size, jobs: [{job, name, config}]
    raises       SubmitError saying what is wrong, and whatever `resolve` raises; QueueError
    """
    top = Path(working_dir).resolve()
    files = _config_files(configs)
    if name is not None and len(files) != 1:
        raise SubmitError(f"name: '{name}' is for one job, and there are {len(files)} configs: leave it out")
    if retries < 0:
        raise SubmitError(f"retries: {retries} is below 0")
    travels = contents(top)
    commit = commit_of(top)
    prepared = [_prepare(file, words, resolve, travels, name) for file in files]
    with Store(folder) as store:
        package = pack(travels, store.folder / "packages")
        jobs = [
            NewJob(
                name=one["name"],
                entrypoint=one["entrypoint"],
                user=user or getpass.getuser(),
                priority=priority,
                after=tuple(store.find(which).id for which in after),
                retries=retries,
                resources=one["resources"] if resources is None else resources,
                package=str(package),
                metadata={"config": one["config"], "resolved": one["resolved"], "package": package.stem, **commit},
            )
            for one in prepared
        ]
        numbers = store.add(jobs, time.time())
    return {
        "working_dir": str(top),
        "num_files": len(travels.sizes),
        "num_bytes": travels.num_bytes,
        "size": megabytes(travels.num_bytes),
        **commit,
        "jobs": [
            {"job": number, "name": one["name"], "config": one["config"]}
            for number, one in zip(numbers, prepared, strict=True)
        ],
    }


def entrypoint(config: str, words: Sequence[str] = ()) -> str:
    """The shell command that runs a config of the working directory, in Ray's own Python."""
    return f'{_PYTHON}; exec "$p" -m stillgrain run {shlex.join([config, *words])}'


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


def _config_files(configs: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, configs):
        below = sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
        if not below:
            raise SubmitError(f"{path}: holds no *.yaml")
        files += below
    if not files:
        raise SubmitError("no config is given")
    return files


def _prepare(file: Path, words: Sequence[str], resolve: Resolve, travels: Contents, name: str | None) -> dict[str, Any]:
    inside = _inside(file.resolve(), travels.folder)
    if inside is None or inside not in travels:
        why = "lies outside it" if inside is None else ".gitignore or .rayignore names it"
        raise SubmitError(f"{file}: does not travel with the working directory {travels.folder}, since {why}: move it")
    _refuse_secrets(file, words)
    with _working_in(travels.folder):
        text = resolve(Path(inside), words)
    config = yaml.safe_load(text)
    resolved = _checked_paths(config, _given_texts(travels.folder / inside, words), travels, str(file))
    _refuse_secrets_in(resolved, str(file))
    job_name = name or str(config.get("name") or Path(inside).stem)
    if not _NAME.match(job_name):
        raise SubmitError(f"name: '{job_name}' may hold letters, digits, dot, dash and underscore, up to 128")
    shown = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=120)
    return {
        "name": job_name,
        "config": inside,
        "entrypoint": entrypoint(inside, words),
        "resources": declared_resources(config),
        "resolved": shown if len(shown) <= _MAX_CONFIG_CHARS else "",
    }


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
