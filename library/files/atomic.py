"""Files and folders that appear whole or not at all: a temporary name beside the target, fsync, rename.

A reader never sees half a file, and a crash leaves at most a dot-named `.tmp` behind. An object store has no rename,
but shows an object only when all of it has arrived: what goes to a URI is written here first, and then sent.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from upath import UPath

_P = TypeVar("_P", Path, UPath)


@contextmanager
def whole_file(path: str | Path | UPath) -> Iterator[Path]:
    """A temporary path to write, which becomes `path` when the block ends well and vanishes when it does not.

    path    created or replaced; missing parent folders are created
    yields  a path in the same folder (a rename is only atomic inside one file system), which the block must create
    raises  OSError when the disk is full or the folder not writable; `path` is then as it was
    """
    if isinstance(path, UPath) and not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield (temporary := Path(folder, path.name))
            _send(temporary, path)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path | UPath, *, last: str | None = None) -> Iterator[Path]:
    """`whole_file` for a folder: yields an empty temporary folder, which replaces `path` with all it holds.

    An existing folder is moved aside, and back again should the rename fail or be interrupted. Between the two renames
    `path` does not exist for an instant: no portable call exchanges two folders.

    In an object store the files appear one after another, and none of an older folder is left beside them. There a
    folder is whole when the file is there that vouches for the others, such as a manifest with their hashes. An older
    folder stays whole until all of the new one lies beside it under a temporary name. Then the store copies within
    itself, and while it does there is no `last`: whoever reads meanwhile, or after a kill, finds neither folder, and
    never a mixture that is vouched for. After such a kill the new one is still whole under its temporary name.

    last  name of that file, which is sent after all others
    """
    if isinstance(path, UPath) and not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            _replace(Path(folder), path, last)
        return
    path = Path(path)
    with _made_beside(path) as (temporary, old):
        yield temporary
        _sync_folder(temporary)
        if path.is_dir():
            os.rename(path, old)
        os.rename(temporary, path)
        _sync(path.parent)


@contextmanager
def folder_made_once(path: str | Path | UPath, *, last: str) -> Iterator[Path]:
    """`whole_folder` for one whose path names its content: of many who make it at once, the first to end makes it, and
    the others drop theirs. So one that is whole never goes away, and may be in use.

    What lacks `last` is the rest of an interrupted copy, and is replaced. In an object store it is sent anew over what
    is there: someone else may still be sending the same files, and is about to vouch for all of them.

    last  name of the file that says that all others are there
    """
    if isinstance(path, UPath) and not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            if not (path / last).exists():
                _send_folder(Path(folder), path, last)
        return
    path = Path(path)
    with _made_beside(path) as (temporary, old):
        yield temporary
        _sync_folder(temporary)
        if path.is_dir() and not (path / last).exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)  # which fails where a folder holds anything
        except OSError:
            if not (path / last).exists():
                raise
        _sync(path.parent)


@contextmanager
def _made_beside(path: Path) -> Iterator[tuple[Path, Path]]:
    """A folder to be filled beside `path`, and a name for what `path` was, which comes back if nothing takes its place.
    Neither is left."""
    temporary, old = _beside(path), _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary, old
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _replace(folder: Path, path: UPath, last: str | None) -> None:
    """Send a folder in the place of another."""
    store = path.fs
    there = store.find(path.path)
    if not there:
        _send_folder(folder, path, last)
        return
    beside = _beside(path)
    try:
        _send_folder(folder, beside, last)
    except BaseException:
        with suppress(Exception):  # what broke the sending may break this too
            store.rm(beside.path, recursive=True)
        raise
    names = [file.relative_to(folder).as_posix() for file in _in_order(folder, last)]
    vouches = (path / last).path if last is not None else None
    if vouches in there:
        store.rm_file(vouches)
    for gone in set(there) - {vouches, *((path / name).path for name in names)}:
        store.rm_file(gone)
    for name in names:
        store.makedirs((path / name).parent.path, exist_ok=True)
        store.cp_file((beside / name).path, (path / name).path)
    store.rm(beside.path, recursive=True)


def _send_folder(folder: Path, path: UPath, last: str | None) -> None:
    for file in _in_order(folder, last):
        _send(file, path / file.relative_to(folder).as_posix())


def _in_order(folder: Path, last: str | None) -> list[Path]:
    """The files of a folder as they are sent."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(files, key=lambda file: (file.name == last, file))


def _send(file: Path, target: UPath) -> None:
    target.fs.makedirs(target.parent.path, exist_ok=True)
    target.fs.put_file(str(file), target.path)


def _beside(path: _P) -> _P:
    # A piece of the name says whose remains these are; the whole could pass the file system's limit of 255 bytes.
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(6)}.tmp")


def _sync_folder(path: Path) -> None:
    for folder, _, files in os.walk(path):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
