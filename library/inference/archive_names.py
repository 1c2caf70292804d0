"""What the outputs of raws are called: the tree of the raws mirrored, or a template filled from each raw's metadata."""

from __future__ import annotations

import os
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from library.errors import ConfigError
from library.files import exif
from library.inference.archive_inputs import RawFile
from library.inference.archive_places import opened, status_of
from library.inference.outputs import ENCODERS

ArchiveFormat = Literal["dng", "cfa-dng", "exr", "tiff", "png", "jpeg", "jxl", "sgr"]
"""Those of a denoiser, and `.sgr`, which a codec makes."""

PLACES = ("root", "folder", "stem", "suffix", "ext")
"""Fields of a template that the raw's path and the output's format fill."""
FACTS = ("iso", "make", "model", "date", "time", "year", "month", "day")
"""Fields that its metadata fills; what a file does not say is `unknown`."""

_LARGEST_FILE = 2**31


@dataclass(frozen=True)
class Job:
    """One raw file and the outputs it is to get.

    raw       absolute, or a URI
    name      the raw's name in the ledger: relative to the archive, or absolute where several were given
    outputs   absolute paths
    size, mtime_ns  from before it was read, so that a file that changes meanwhile is not taken for done; None for one
              that cannot be looked at
    sidecars  what is copied, and where to
    sha256    of the raw, where it is known to be still that
    description  size and time of change of the file that describes it, if it is headless
    problem   why it cannot be used, where that is known without opening it
    """

    raw: str
    name: str
    outputs: dict[ArchiveFormat, str]
    size: int | None = None
    mtime_ns: int | None = None
    sidecars: tuple[tuple[str, str], ...] = ()
    sha256: str | None = None
    description: tuple[int, int] | None = None
    problem: str | None = None


def suffix_of(output_format: ArchiveFormat) -> str:
    return ".sgr" if output_format == "sgr" else ENCODERS[output_format].suffix


def mirrored(raws: Sequence[RawFile], output: Path, formats: Sequence[ArchiveFormat]) -> list[Job]:
    """Jobs whose outputs lie as the raws do. Two raws of one folder that differ only in their suffix keep it.

    raises  ConfigError when two outputs would be one file
    """
    stems = Counter(os.path.splitext(raw.path)[0] for raw in raws)

    def name_of(raw: RawFile, output_format: ArchiveFormat) -> str:
        keeps_suffix = stems[os.path.splitext(raw.path)[0]] > 1
        return (raw.relative if keeps_suffix else os.path.splitext(raw.relative)[0]) + suffix_of(output_format)

    return _jobs(raws, output, formats, name_of)


def templated(
    raws: Sequence[RawFile],
    output: Path,
    formats: Sequence[ArchiveFormat],
    template: str,
    facts_of: Callable[[RawFile], Mapping[str, str]],
) -> list[Job]:
    """Jobs whose outputs are called by a template such as `{year}/{stem}_{iso}.{ext}`; see `PLACES` and `FACTS`.

    facts_of  asked only where the template has fields that metadata fills
    raises    ConfigError for an unknown field, a name outside of the output folder, or two outputs of one name
    """
    fields = check_template(template)
    asks = bool(fields & set(FACTS))

    def name_of(raw: RawFile, output_format: ArchiveFormat) -> str:
        folder, name = os.path.split(raw.relative)
        stem, suffix = os.path.splitext(name)
        facts = {field: _plain(value) for field, value in facts_of(raw).items()} if asks else {}
        places = {"root": raw.root, "folder": folder or ".", "stem": stem, "suffix": suffix.lstrip(".")}
        filled = template.format(**facts, **places, ext=suffix_of(output_format).lstrip("."))
        path = os.path.normpath(filled)
        if path.startswith(("/", "..")) or path == ".":
            raise ConfigError(
                f"name: '{template}' makes '{filled}' of {raw.path}, which is outside of the output folder"
            )
        return path

    return _jobs(raws, output, formats, name_of)


def check_template(template: str) -> set[str]:
    """The fields of a template. Raises ConfigError for one that cannot be filled."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"name: '{template}' is no template ({error}): write {{stem}}_{{iso}}.{{ext}}") from None
    fields = {field for _, field, _, _ in parts if field is not None}
    if unknown := sorted(fields - {*PLACES, *FACTS}):
        raise ConfigError(f"name: '{template}' has unknown field '{unknown[0]}'; known: {', '.join(PLACES + FACTS)}")
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise ConfigError(f"name: '{template}' formats a field, but all are texts: leave what follows ':' and '!' out")
    return fields


def facts_of_file(path: str) -> dict[str, str]:
    """`FACTS` from a raw's EXIF; a file that cannot be read, or claims to be enormous, says nothing. Nothing is
    decoded."""
    try:
        tags = {}
        if status_of(path).size <= _LARGEST_FILE:
            with opened(path) as file:
                tags = exif.read_tags(file.read())
    except OSError:
        tags = {}
    speed = tags.get(exif.ISO)
    facts = {
        "iso": f"{speed[0]:g}" if isinstance(speed, list) and speed and speed[0] else "",
        "make": _text(tags.get(exif.MAKE)),
        "model": _text(tags.get(exif.MODEL)),
    }
    when = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)", _text(tags.get(exif.DATE_TIME_ORIGINAL)))
    if when:
        year, month, day, hour, minute, second = when.groups()
        facts |= {"year": year, "month": month, "day": day, "date": f"{year}-{month}-{day}"}
        facts |= {"time": f"{hour}{minute}{second}"}
    return {field: facts.get(field) or "unknown" for field in FACTS}


def refuse_names_that_differ_in_case_only(jobs: Iterable[Job]) -> None:
    """For an output folder whose file system takes `A.dng` and `a.dng` for one. Raises ConfigError."""
    owners: dict[str, str] = {}
    for job in jobs:
        for target in job.outputs.values():
            if (owner := owners.setdefault(target.casefold(), job.raw)) != job.raw:
                raise _collision(owner, job.raw, f"{target}, whose file system tells no capitals from small letters")


def _collision(owner: str, other: str, target: str) -> ConfigError:
    return ConfigError(
        f"{owner} and {other} would both be written to {target}: give them different output folders, or a name such as "
        "'{root}/{folder}/{stem}.{suffix}.{ext}'"
    )


def _jobs(
    raws: Sequence[RawFile],
    output: Path,
    formats: Sequence[ArchiveFormat],
    name_of: Callable[[RawFile, ArchiveFormat], str],
) -> list[Job]:
    folder = os.path.abspath(output)
    several = len({raw.path.removesuffix(raw.relative) for raw in raws}) > 1
    owners: dict[str, str] = {}
    jobs = []
    for raw in raws:
        outputs: dict[ArchiveFormat, str] = {}
        for output_format in formats if raw.problem is None else ():
            target = f"{folder}/{name_of(raw, output_format)}"
            if (owner := owners.setdefault(target, raw.path)) != raw.path:
                raise _collision(owner, raw.path, target)
            if target in outputs.values():
                raise ConfigError(
                    f"formats: {', '.join(formats)} would write the same file names; run them into different folders"
                )
            outputs[output_format] = target
        sidecars = _sidecar_targets(raw, list(outputs.values())) if raw.sidecars else ()
        name = raw.path if several else raw.relative
        jobs.append(
            Job(
                raw.path,
                name,
                outputs,
                size=raw.size,
                mtime_ns=raw.mtime_ns,
                sidecars=sidecars,
                description=raw.description,
                problem=raw.problem,
            )
        )
    return jobs


def _sidecar_targets(raw: RawFile, outputs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Beside each output, in the convention that the sidecar was found in: IMG.xmp, or IMG.CR2.xmp."""
    folder, raw_name = os.path.split(raw.path)
    pairs = {}
    for name in raw.sidecars:
        stem, suffix = os.path.splitext(name)
        for output in outputs:
            target = f"{output if stem == raw_name else os.path.splitext(output)[0]}{suffix}"
            pairs[target] = f"{folder}/{name}"
    return tuple((source, target) for target, source in pairs.items())


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _plain(value: str) -> str:
    """A value that makes no folder and no hidden file, and that every file system takes."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", value).strip(" .") or "unknown"
