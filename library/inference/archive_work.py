"""What a worker does with one file of an archive: outputs are made aside, and appear only if the raw stayed as it was.

They are written to a staging folder of the run, inside the output folder, and renamed into place when all of them are
whole. Whatever kills a worker leaves its remains there and nowhere else; the next run clears them away, and so shuts
out workers of a dead run that are still busy.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from library.errors import ConfigError, ImageFileError, RawFileError, StillgrainError
from library.files.sgr.container import SgrFile
from library.inference.archive_names import ArchiveFormat, Job, suffix_of
from library.inference.codec import CodecEngine
from library.inference.denoise import denoise_file
from library.inference.engine import Engine
from library.inference.ledger import Known
from library.inference.outputs import Format
from library.inference.sgr_files import encode_file

Make = Callable[[str, Mapping[ArchiveFormat, Path]], str]
"""Turns a raw into files of some formats, and returns the digest of the raw's bytes that it has read."""

LARGEST_RAW = 4 * 2**30
"""Bytes: ten times the largest that cameras write, and more than LibRaw takes."""
_PROBE = 64 * 1024
_OUT_OF_MEMORY = re.compile("allocate memory|out of memory")
"""In the RuntimeErrors that PyTorch raises on the CPU and on CUDA."""


@dataclass(frozen=True)
class Output:
    """A file that was made: its content, and how `os.stat` shows it."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Result:
    """What became of one file.

    outputs  that are in their places
    known    of the raw; None while its bytes are not known to be one file
    error    why outputs are missing
    lasting  it is the raw's own fault, so that another attempt with the same bytes would end the same
    """

    outputs: dict[ArchiveFormat, Output]
    known: Known | None = None
    error: str | None = None
    lasting: bool = False


def denoising(engine: Engine) -> Make:
    """Files of a denoiser."""

    def make(raw: str, outputs: Mapping[ArchiveFormat, Path]) -> str:
        return denoise_file(raw, cast(Mapping[Format, Path], outputs), engine)[0].input_sha256

    return make


def encoding(engine: CodecEngine, *, quality: int | None, bpp: float | None, strength: float) -> Make:
    """`.sgr` files of a codec; see `CodecEngine.encode`."""

    def make(raw: str, outputs: Mapping[ArchiveFormat, Path]) -> str:
        encode_file(raw, outputs["sgr"], engine, quality=quality, bpp=bpp, strength=strength)
        with SgrFile(outputs["sgr"]) as file:
            return file.metadata.original_sha256

    return make


def make_outputs(job: Job, make: Make, staging: Path) -> Result:
    """Make the outputs of one raw. Raises nothing that a file, a disk or too little memory could be the reason of.

    staging  an existing folder of this run, in the file system of the outputs
    """
    known = None
    try:
        if job.size is not None and job.size > LARGEST_RAW:
            raise RawFileError(job.raw, f"has {job.size:,} bytes, more than any raw file: it is damaged, or none")
        known = look_at(job.raw)
        with _private_folder(staging) as (folder, descriptor):
            staged: dict[ArchiveFormat, Path] = {f: folder / f"{f}{suffix_of(f)}" for f in job.outputs}
            sha256 = make(job.raw, staged)
            if sha256 != known.sha256:
                raise _changed(job.raw)
            made = {f: _output(path) for f, path in staged.items()}
            placed: dict[ArchiveFormat, Output] = {}
            for output_format, target in job.outputs.items():
                try:
                    _publish(staged[output_format].name, descriptor, target)
                except OSError as error:
                    return Result(placed, known, str(_unwritable(target, error)))
                placed[output_format] = made[output_format]
        return Result(placed, known)
    except (RawFileError, ConfigError) as error:
        if known is None:
            return Result({}, None, str(error))
        try:
            same = look_at(job.raw) == known
        except RawFileError as gone:
            return Result({}, None, str(gone))
        return Result({}, known, str(error), True) if same else Result({}, None, str(_changed(job.raw)))
    except StillgrainError as error:
        return Result({}, known, str(error))
    except OSError as error:
        return Result({}, known, str(_unwritable(next(iter(job.outputs.values())), error)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        return Result(
            {}, known, f"{job.raw}: needs more memory than there is: give fewer workers, or a machine with more"
        )


def look_at(path: str | Path) -> Known:
    """Size, time of change, digest and probe of a file.

    raises  RawFileError for a file that cannot be read, or that changes meanwhile
    """
    try:
        with open(path, "rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            probe = _probe(file.fileno(), before.st_size)
        after = os.stat(path)
    except FileNotFoundError:
        raise RawFileError(path, "does not exist: check the path") from None
    except OSError as error:
        raise RawFileError(path, f"cannot be read ({error.strerror}): check its permissions and the disk") from None
    if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
        raise _changed(path)
    return Known(before.st_size, before.st_mtime_ns, digest, probe)


def probe_of(path: str | Path) -> str:
    """A digest of a file's first and last bytes, for a fraction of the price of a whole one. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return _probe(file.fileno(), os.fstat(file.fileno()).st_size)


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: str, target: str, staging: Path, *, link: bool) -> Output:
    """Give `target` the content of `source`: as another name of the same file, or where that cannot be as a copy. It
    appears whole or not at all. Raises OSError."""
    with _private_folder(staging) as (folder, descriptor):
        staged = folder / "copy"
        try:
            if not link:
                raise OSError
            os.link(source, staged)
        except OSError:
            shutil.copyfile(source, staged)
            with open(staged, "rb") as file:
                os.fsync(file.fileno())
        made = _output(staged)
        _publish(staged.name, descriptor, target)
    return made


def fresh_staging(output: Path) -> Path:
    """A staging folder for one run; whatever earlier runs left behind is removed. Raises OSError."""
    clear_staging(output)
    folder = output / ".stillgrain" / "staging" / secrets.token_hex(6)
    folder.mkdir(parents=True)
    return folder


def clear_staging(output: Path) -> None:
    """Remove what is half written, with the folders of runs that are over."""
    shutil.rmtree(output / ".stillgrain" / "staging", ignore_errors=True)


@contextmanager
def _private_folder(staging: Path) -> Iterator[tuple[Path, int]]:
    """A folder for one attempt, and a descriptor of it. What a later run has removed cannot be renamed through the
    descriptor, even if somebody makes a folder of the same name again."""
    folder = staging / secrets.token_hex(8)
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder, descriptor
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _publish(name: str, descriptor: int, target: str) -> None:
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    os.replace(name, target, src_dir_fd=descriptor)
    parent = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _output(path: Path) -> Output:
    digest = digest_of(path)
    status = path.stat()
    return Output(digest, status.st_size, status.st_mtime_ns)


def _probe(descriptor: int, size: int) -> str:
    digest = hashlib.sha256(os.pread(descriptor, _PROBE, 0))
    if size > _PROBE:
        digest.update(os.pread(descriptor, _PROBE, max(_PROBE, size - _PROBE)))
    return digest.hexdigest()


def _changed(path: str | Path) -> RawFileError:
    return RawFileError(path, "changed while it was read: run again when whoever writes it is done")


def _unwritable(target: str, error: OSError) -> ImageFileError:
    reason = "it is on another disk than its output folder" if error.errno == errno.EXDEV else error.strerror
    return ImageFileError(target, f"cannot be written ({reason or error}): see to the disk and to its permissions")
