"""Files and folders that appear whole or not at all: a temporary name beside the target, fsync, rename.

A reader never sees half a file, and a crash leaves at most a dot-named `.tmp` behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write, which becomes `path` when the block ends well and vanishes when it does not.

    path    created or replaced; missing parent folders are created
    yields  a path in the same folder (a rename is only atomic inside one file system), which the block must create
    raises  OSError when the disk is full or the folder not writable; `path` is then as it was
    """
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
def whole_folder(path: str | Path) -> Iterator[Path]:
    """`whole_file` for a folder: yields an empty temporary folder, which replaces `path` with all it holds.

    An existing folder is moved aside, and back again should the rename fail. Between the two renames `path` does
    not exist for an instant: no portable call exchanges two folders.
    """
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


def _beside(path: Path) -> Path:
    # A piece of the name says whose remains these are; the whole could pass the file system's limit of 255 bytes.
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(6)}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
