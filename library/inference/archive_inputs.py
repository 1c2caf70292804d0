"""The raw files that a run is asked for: folders, globs, lists, single files; each once, with the sidecars beside it.

Looks at names and times only, and opens none of the files: there may be a hundred thousand.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet

from library.errors import ConfigError
from library.files.raw import RAW_SUFFIXES
from library.inference.archive_places import description_of, is_uri, status_in, status_of


@dataclass(frozen=True)
class RawFile:
    """A file that was found or named.

    path      absolute, or a URI
    relative  its place below the folder it was searched from, which outputs mirror
    root      that folder's name
    size, mtime_ns  as found; None for a file that cannot be looked at
    sidecars  names of the .xmp files that belong to it, in its own folder
    description  size and time of change of the JSON file that describes it, if it is headless
    problem   why it cannot be used, where that is known without opening it
    """

    path: str
    relative: str
    root: str
    size: int | None = None
    mtime_ns: int | None = None
    sidecars: tuple[str, ...] = ()
    description: tuple[int, int] | None = None
    problem: str | None = None


def find_raws(inputs: Sequence[str | Path], output: str | Path) -> list[RawFile]:
    """Every raw file that some inputs stand for, in order of their places; a file that two of them name comes once.

    A folder is searched with its subfolders, also through symbolic links, each folder once, so that loops end and a
    folder's own name wins over a link's. Names that begin with a dot, and the output folder, are left out.

    inputs  folders, raw files, globs (`**` goes any depth down), `.txt` files of one path a line, `.parquet` files with
            a column `path`; relative paths in a list count from the list's folder. Folders, files and globs may be URIs
    raises  ConfigError for an input that stands for nothing, a list that cannot be read, or the output folder itself
    """
    found: dict[str, RawFile] = {}
    for given in inputs:
        before = len(found)
        for raw in _raws_of(_absolute(str(given)), os.path.abspath(output)):
            found.setdefault(raw.path, raw)
        if len(found) == before and glob.has_magic(str(given)) and not os.path.exists(given):
            raise ConfigError(f"raws: {given} matches no file: quote a glob so that it arrives whole, or correct it")
    return sorted(found.values(), key=lambda raw: (raw.relative, raw.path))


def named_raws(paths: Iterable[str | Path]) -> list[RawFile]:
    """Files that were named one by one, each once, whatever their suffix; those that are not there among them."""
    absolute = dict.fromkeys(os.path.abspath(path) for path in paths)
    return [_named(path, os.path.dirname(path)) for path in absolute]


def _absolute(given: str) -> str:
    given = given.removeprefix("file://")
    return given if is_uri(given) else os.path.abspath(given)


def _raws_of(given: str, output: str) -> Iterator[RawFile]:
    if is_uri(given):
        yield from _stored(given)
    elif os.path.isdir(given):
        yield from _search(given, given, output)
    elif os.path.exists(given):
        if given.lower().endswith(".txt"):
            yield from _listed(_lines_of(given), os.path.dirname(given), output)
        elif given.lower().endswith(".parquet"):
            yield from _listed(_column_of(given), os.path.dirname(given), output)
        else:
            yield _named(given, os.path.dirname(given))
    elif glob.has_magic(given):
        base = given
        while glob.has_magic(base):
            base = os.path.dirname(base)
        for match in sorted(glob.iglob(given, recursive=True)):
            if os.path.isdir(match):
                # `**` names every folder's files itself; and an earlier run may have made the output folder.
                if "**" not in given and _folder_id(match) != _folder_id(output):
                    yield from _search(match, base, output)
            elif Path(match).suffix.lower() in RAW_SUFFIXES and not _is_below(match, output):
                yield _named(match, base)
    else:
        raise ConfigError(
            f"raws: {given} is not a folder, nor a file, nor a glob; give the folder that holds the raw files"
        )


def _search(folder: str, base: str, output: str) -> Iterator[RawFile]:
    """The raw files below a folder; their places count from `base`."""
    root = os.path.basename(base)
    seen = set()
    if (its_id := _folder_id(output)) is not None:
        if its_id == _folder_id(folder):
            raise ConfigError(
                f"output: is the folder of the raw files itself, {folder}; give another, or one inside it"
            )
        seen.add(its_id)
    folders, links = deque([folder]), deque[str]()
    while folders or links:
        here = folders.popleft() if folders else links.popleft()
        relative = os.path.relpath(here, base)
        prefix = "" if relative == "." else f"{relative}/"
        try:
            if (here_id := _folder_id(here)) in seen:
                continue
            seen.add(here_id)
            with os.scandir(here) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            problem = f"{printable(here)}: cannot be searched ({error.strerror}): check its permissions"
            yield RawFile(here, relative, root, problem=problem)
            continue
        xmp = _xmp_by_stem(e.name for e in entries if not (e.is_symlink() and _leads_to_another_kind(e.path)))
        names = {entry.name for entry in entries}
        for entry in entries:
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in RAW_SUFFIXES:
                yield _looked_at(entry.path, prefix + entry.name, root, _sidecars_of(entry.name, xmp), names)


def _stored(given: str) -> Iterator[RawFile]:
    """The raw files that a URI stands for: itself, those below it, or those that its glob matches."""
    try:
        fs, inside = fsspec.core.url_to_fs(given, use_listings_cache=False)
        base = inside.rstrip("/")
        if glob.has_magic(inside):
            listed = fs.glob(inside, detail=True)
            while glob.has_magic(base):
                base = os.path.dirname(base)
        elif fs.isfile(inside):
            listed = fs.find(os.path.dirname(inside), maxdepth=1, detail=True)
            base = os.path.dirname(inside)
        else:
            listed = fs.find(inside, detail=True)
    except Exception as error:
        # Every store's client has errors of its own.
        raise ConfigError(
            f"raws: {given} cannot be listed ({type(error).__name__}: {error}): check the address, your access to it, "
            "and for S3 that 'stillgrain[s3]' is installed"
        ) from None
    listed = {name: info for name, info in listed.items() if info["type"] == "file"}
    by_folder: dict[str, list[str]] = {}
    for name in listed:
        by_folder.setdefault(os.path.dirname(name), []).append(os.path.basename(name))
    xmp = {folder: _xmp_by_stem(names) for folder, names in by_folder.items()}
    only = inside if fs.isfile(inside) else None
    num_raws = 0
    for name, info in listed.items():
        folder, file = os.path.split(name)
        relative = os.path.relpath(name, base)
        hidden = any(part.startswith(".") for part in relative.split("/"))
        wanted = name == only if only else os.path.splitext(file)[1].lower() in RAW_SUFFIXES and not hidden
        if not wanted:
            continue
        num_raws += 1
        status, described = status_in(info), listed.get(description_of(name))
        description = status_in(described)[:2] if described else None
        yield RawFile(
            path=fs.unstrip_protocol(name),
            relative=relative,
            root=os.path.basename(base),
            size=status.size,
            mtime_ns=status.mtime_ns,
            sidecars=_sidecars_of(file, xmp[folder]),
            description=description,
        )
    if not num_raws and not glob.has_magic(inside) and not listed:
        raise ConfigError(f"raws: {given} holds no file: give the address of the raw files, or of what they lie below")


def _looked_at(
    path: str, relative: str, root: str, sidecars: tuple[str, ...], names: Collection[str] | None = None
) -> RawFile:
    """A file as the disk shows it. `names` are those in its folder, where somebody has listed them."""
    if printable(path) != path:
        problem = f"{printable(path)}: its name is not UTF-8, which no output of it could be: rename it"
        return RawFile(path, relative, root, problem=problem)
    try:
        status = os.stat(path)
    except OSError:
        return RawFile(path, relative, root)  # reading it will say what is wrong
    problem = None
    if stat.S_ISDIR(status.st_mode):
        problem = f"{path}: is a folder: name a raw file inside it"
    elif not stat.S_ISREG(status.st_mode):
        problem = f"{path}: is a device or a pipe, and no file: name a raw file"
    description = None
    if names is None or description_of(os.path.basename(path)) in names:
        with suppress(OSError):
            description = status_of(description_of(path))[:2]
    return RawFile(path, relative, root, status.st_size, status.st_mtime_ns, sidecars, description, problem)


def _named(path: str, base: str) -> RawFile:
    """A file that was named by itself, whatever its suffix."""
    folder, name = os.path.split(path)
    candidates = [f"{stem}{suffix}" for stem in (os.path.splitext(name)[0], name) for suffix in (".xmp", ".XMP")]
    paths = {candidate: os.path.join(folder, candidate) for candidate in candidates}
    xmp = _xmp_by_stem(c for c, path in paths.items() if os.path.exists(path) and not _leads_to_another_kind(path))
    relative = os.path.relpath(path, base) if _is_below(path, base) else path.lstrip("/")
    return _looked_at(path, relative, os.path.basename(base), _sidecars_of(name, xmp))


def _listed(paths: Iterable[str], base: str, output: str) -> Iterator[RawFile]:
    for path in paths:
        path = path.removeprefix("file://")
        if is_uri(path):
            yield from _stored(path)
            continue
        path = os.path.abspath(os.path.join(base, os.path.expanduser(path)))
        if os.path.isdir(path):
            yield from _search(path, base if _is_below(path, base) else "/", output)
        else:
            yield _named(path, base)


def _lines_of(path: str) -> list[str]:
    try:
        # Names that are not UTF-8 are carried along, to be refused one by one.
        text = Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise ConfigError(f"raws: {path} cannot be read ({error.strerror}): check its permissions") from None
    return [line for line in text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n") if line]


def _column_of(path: str) -> list[str]:
    try:
        values = pyarrow.parquet.read_table(path, columns=["path"]).column("path").to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise ConfigError(f"raws: {path} has no column 'path' that can be read ({error}): write one of texts") from None
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"raws: {path} has paths that are no texts: leave those rows out")
    return values


def _leads_to_another_kind(path: str) -> bool:
    """Whether what is called a sidecar is a link to something else: it would be copied beside the outputs, and an
    archive from elsewhere may have links to what is not for everybody's eyes."""
    return os.path.islink(path) and not os.path.realpath(path).lower().endswith(".xmp")


def _xmp_by_stem(names: Iterable[str]) -> dict[str, str]:
    return {os.path.splitext(name)[0]: name for name in sorted(names) if name.lower().endswith(".xmp")}


def _sidecars_of(name: str, xmp: dict[str, str]) -> tuple[str, ...]:
    """`IMG.xmp` as Adobe names it, `IMG.CR2.xmp` as darktable does."""
    if not xmp:
        return ()
    return tuple(xmp[stem] for stem in (os.path.splitext(name)[0], name) if stem in xmp)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _folder_id(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def printable(name: str) -> str:
    """A name as it can be shown and stored: bytes that are no UTF-8 as escapes, such as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
