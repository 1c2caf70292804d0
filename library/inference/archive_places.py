"""Raws where they lie: in a folder, or in a store that fsspec knows by a URI such as `s3://bucket/2024/IMG_0001.CR2`.

A path is a text, absolute or a URI. What a store's client raises comes out as OSError, as a disk's own errors do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

from library.files import headless


class Status(NamedTuple):
    """How a file is known to be still the same without reading it.

    mtime_ns  of its last change, as exact as its place tells
    identity  inode, or the store's own tag of the content
    """

    size: int
    mtime_ns: int
    identity: str


def is_uri(path: str) -> bool:
    return "://" in path


def description_of(path: str) -> str:
    """Where a headless raw would be described."""
    return f"{path}.json"


def status_of(path: str) -> Status:
    """Raises OSError."""
    if not is_uri(path):
        found = os.stat(path)
        return Status(found.st_size, found.st_mtime_ns, str(found.st_ino))
    with _as_os_errors():
        fs, inside = fsspec.core.url_to_fs(path, use_listings_cache=False)
        return status_in(fs.info(inside))


def status_in(info: dict[str, Any]) -> Status:
    """The same, from what a store's listing says of a file."""
    changed: Any = (
        info.get("LastModified") or info.get("last_modified") or info.get("mtime") or info.get("created") or 0
    )
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else float(changed)
    return Status(int(info["size"] or 0), int(seconds * 1e9), str(info.get("ETag") or info.get("etag") or ""))


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file to read from, anywhere in it. Raises OSError."""
    if not is_uri(path):
        with open(path, "rb", buffering=0) as file:
            yield file
        return
    with _as_os_errors(), fsspec.open(path, "rb") as file:
        yield file  # pyright: ignore[reportReturnType]


@contextmanager
def local_file(path: str) -> Iterator[Path]:
    """The file in this machine's own file system: itself, or a copy for the block, with its description beside it.

    raises  OSError
    """
    if not is_uri(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="stillgrain-") as folder:
        copy = Path(folder, path.rsplit("/", 1)[1])
        fetch(path, copy)
        if not headless.is_container(_head(copy)):
            with suppress(FileNotFoundError):
                fetch(description_of(path), headless.sidecar_path(copy))
        yield copy


def fetch(source: str, target: Path) -> None:
    """Copy a file from anywhere, with its time of change. Raises OSError."""
    if not is_uri(source):
        shutil.copy2(source, target)
        return
    with _as_os_errors():
        fs, inside = fsspec.core.url_to_fs(source)
        status = status_in(fs.info(inside))
        fs.get_file(inside, str(target))
    os.utime(target, ns=(status.mtime_ns, status.mtime_ns))


def content_digest(local: Path, sha256: str) -> str:
    """What names all that a raw is made of: of a headless one also its description, without which it is no picture.

    sha256  of the raw's own bytes
    raises  OSError
    """
    if headless.is_container(_head(local)):
        return sha256
    try:
        description = headless.sidecar_path(local).read_bytes()
    except FileNotFoundError:
        return sha256
    return hashlib.sha256(f"{sha256} {hashlib.sha256(description).hexdigest()}".encode()).hexdigest()


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(32)


@contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # Every store's client has errors of its own.
        raise OSError(None, f"{type(error).__name__}: {error}") from error
