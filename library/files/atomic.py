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
from contextlib import contextmanager
from pathlib import Path

from upath import UPath


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

    An existing folder is moved aside, and back again should the rename fail. Between the two renames `path` does
    not exist for an instant: no portable call exchanges two folders.

    In an object store the files appear one after another, and none of an older folder is left beside them. There a
    folder is whole when the file is there that vouches for the others, such as a manifest with their hashes.

    last  name of that file, which is sent after all others
    """
    if isinstance(path, UPath) and not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            if path.exists():
                path.fs.rm(path.path, recursive=True)
            for file in sorted((f for f in Path(folder).rglob("*") if f.is_file()), key=lambda f: (f.name == last, f)):
                _send(file, path / file.relative_to(folder).as_posix())
        return
    path = Path(path)
    temporary, old = _beside(path), _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        if path.is_dir():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _send(file: Path, target: UPath) -> None:
    target.fs.makedirs(target.parent.path, exist_ok=True)
    target.fs.put_file(str(file), target.path)


def _beside(path: Path) -> Path:
    # A piece of the name says whose remains these are; the whole could pass the file system's limit of 255 bytes.
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(6)}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
