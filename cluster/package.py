"""What travels with a job: the working directory as one zip, of which the same content always gives the same name.

Packed when a job is submitted, not when it is started: what is edited in between changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import SubmitError

MAX_BYTES = 100 * 2**20
"""Of all files together. Every node unpacks them for every version; Ray's own limit is 512 MiB, zipped."""
_NAMED = 5
_YOUNG_S = 3600.0


@dataclass(frozen=True)
class Contents:
    """The files of a working directory that travel."""

    folder: Path
    sizes: dict[str, int]
    """Bytes of each file, by its path in the folder."""

    @property
    def num_bytes(self) -> int:
        return sum(self.sizes.values())

    def __contains__(self, path: str) -> bool:
        """Whether a file travels, or anything below a folder."""
        below = path.rstrip("/") + "/"
        return path in ("", ".") or path in self.sizes or any(name.startswith(below) for name in self.sizes)

    def __str__(self) -> str:
        return f"{self.folder}: {len(self.sizes)} files, {megabytes(self.num_bytes)}"


def contents(folder: str | Path) -> Contents:
    """What Ray would send of a folder: not what .gitignore and .rayignore name, nor .git, .venv, __pycache__.

    raises  SubmitError when it is more than MAX_BYTES, naming the biggest files; for a link that leads out of the
            folder
    """
    # Ray's own walk, so that what is shown here and what `ray job submit` sends are the same.
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    top = Path(folder).resolve()
    if not top.is_dir():
        raise SubmitError(f"{folder}: is not a folder; give the one that holds stillgrain.py")
    sizes: dict[str, int] = {}

    def note(path: Path) -> None:
        if not path.resolve().is_relative_to(top):
            raise SubmitError(
                f"{path}: leads to {path.resolve()}, outside the working directory: name it in {top / '.rayignore'}, "
                "and give the config the path that it leads to"
            )
        if path.is_file():
            sizes[path.relative_to(top).as_posix()] = path.stat().st_size

    excludes = [_get_excludes(top, get_runtime_env_default_excludes())]
    _dir_travel(top, excludes, note, include_gitignore=True, logger=_Silence())  # type: ignore[arg-type]
    found = Contents(top, dict(sorted(sizes.items())))
    if found.num_bytes > MAX_BYTES:
        biggest = sorted(sizes.items(), key=lambda item: -item[1])[:_NAMED]
        raise SubmitError(
            f"{found}, more than the {megabytes(MAX_BYTES)} that may travel; the biggest: "
            f"{', '.join(f'{name} ({megabytes(size)})' for name, size in biggest)}. Name what the job does not need in "
            f"{top / '.rayignore'}, and keep data where every node sees them"
        )
    return found


def pack(found: Contents, packages: str | Path) -> Path:
    """Write the zip, unless one of the same content is there.

    packages  folder for the zips
    returns   its path; the name is a digest of all names, modes and contents
    """
    digest = hashlib.sha256()
    # Each is read once: read again for the zip it may have been edited, and the name would promise another content.
    files = [(name, _is_executable(found.folder / name), (found.folder / name).read_bytes()) for name in found.sizes]
    for name, executable, content in files:
        digest.update(f"{name}\0{executable}\0".encode())
        digest.update(hashlib.sha256(content).digest())
    packages = Path(packages)
    packages.mkdir(mode=0o700, parents=True, exist_ok=True)
    # No longer: 32 such digits are what a token looks like, also to `stillgrain cluster check`.
    target = packages / f"{digest.hexdigest()[:24]}.zip"
    if target.exists():
        os.utime(target)  # or it would be taken for one that nobody has wanted for long
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with (
            open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive,
        ):
            for name, executable, content in files:
                # One date for all, so that the same files are the same bytes, which Ray then sends once.
                entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
                entry.external_attr = (0o755 if executable else 0o644) << 16
                archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
            archive.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def remove_unneeded(packages: Path, needed: Callable[[], set[str]]) -> None:
    """Remove the zips that no job needs, and what killed packers left.

    needed  their names; asked only where there is something old enough to go. One that was packed within the last hour
            stays: its job may not be in the queue yet
    """
    old = [file for file in packages.glob("*.zip") if _is_old(file)]
    old += [file for file in packages.glob(".*.tmp") if _is_old(file)]
    keep = needed() if old else set()
    for file in old:
        if file.name not in keep and _is_old(file):
            file.unlink(missing_ok=True)


def _is_old(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime > _YOUNG_S
    except FileNotFoundError:
        return False


def commit_of(folder: str | Path) -> dict[str, str]:
    """The git commit that a folder stands at, and whether it has changes that are in no commit; nothing without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(folder, "status", "--porcelain")
    return {"git_commit": commit.strip(), "git_dirty": "yes" if changes is None or changes.strip() else "no"}


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MB"


def _git(folder: str | Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _is_executable(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o100)


class _Silence:
    """Ray's walk reports every ignore file that it meets, once a folder."""

    def info(self, *_: object) -> None: ...

    def error(self, *_: object) -> None: ...
