"""Where files lie: a folder on this machine or a URI that fsspec knows (`s3://bucket/runs`), behind one kind of path.

A `UPath` of a local folder is a `pathlib.Path`; of a URI it has the same methods. Credentials and endpoints come from
each store's own environment (`AWS_...`), never from a config.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TypeGuard, cast

from upath import UPath

from library.errors import ConfigError, DataError
from library.files.atomic import folder_made_once


def place(location: str | Path | UPath) -> UPath:
    """A path from a config's text.

    raises  ConfigError for a URI whose protocol is unknown or needs a package that is not installed
    """
    if isinstance(location, UPath) or "://" not in str(location):
        return UPath(location)
    try:
        # Other processes write there too, so nothing that was listed earlier is believed.
        path = UPath(location, use_listings_cache=False)
        path.fs  # noqa: B018  (made on first use)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"storage '{location}' cannot be used: {error}; for S3 install 'stillgrain[s3]', or give a folder"
        ) from None
    return path


def is_local(path: str | Path | UPath) -> TypeGuard[Path]:
    """Whether a path lies in this machine's own file system."""
    return isinstance(path, Path)


def read_text(file: UPath) -> str:
    """What a file in UTF-8 holds at one moment, though others may replace it meanwhile.

    `UPath.read_text` asks an object store twice, for the length and for the bytes, and fails for a file that was
    replaced in between.

    raises  OSError, UnicodeDecodeError
    """
    if is_local(file):
        return file.read_text(encoding="utf-8")
    return cast(bytes, file.fs.cat_file(file.path)).decode("utf-8")


def local_copy(folder: UPath, *, last: str, replaced: bool = False) -> Path:
    """A folder in this machine's own file system: itself, or a copy kept in the user's cache, one for each content.

    folder    its path names its content, unless `replaced`
    last      name of the file that is written there after all others: what lacks it, there or in the cache, is a part
    replaced  whether other content may take its place, of which `last` tells by its bytes; then it must still be there
    raises    DataError where only a part is there to be copied
    """
    if is_local(folder):
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stillgrain"
    content = b""
    if replaced:
        _check_whole(folder, last)
        content = cast(bytes, folder.fs.cat_file((folder / last).path))
    copy = cache / f"{folder.name}-{hashlib.sha256(str(folder).encode() + content).hexdigest()[:16]}"
    if not (copy / last).exists():
        # Before the others are listed: those that arrive after the listing began would be missing in the copy.
        _check_whole(folder, last)
        # Another worker of this machine may be quicker; then its copy stays, which may be in use.
        with folder_made_once(copy, last=last) as temporary:
            folder.fs.get(f"{folder.path}/", f"{temporary}/", recursive=True)
    return copy


def _check_whole(folder: UPath, last: str) -> None:
    if not (folder / last).exists():
        raise DataError(
            f"{folder}: holds no {last}, so it is not whole: what writes it was killed, or has not ended; run that "
            "again, or wait for it"
        )


def remove_folder(path: UPath) -> None:
    """Delete a folder with all that is in it; one that is not there is no error."""
    if is_local(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.fs.rm(path.path, recursive=True)
