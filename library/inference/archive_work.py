"""What a worker does with one file of an archive: outputs are made aside, and appear only if the raw stayed as it was.

They are written to a staging folder of the run, inside the output folder, and renamed into place when all of them are
whole. Whatever kills a worker leaves its remains there and nowhere else; the next run clears them away, and so shuts
out workers of a dead run that are still busy.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from library.errors import ConfigError, ImageFileError, RawFileError, StillgrainError
from library.files.raw import RawImage, read_raw
from library.inference.archive_lanes import Lanes, one_step_after_another
from library.inference.archive_names import ArchiveFormat, Job, suffix_of
from library.inference.archive_places import Status, content_digest, is_uri, local_file, opened, status_of
from library.inference.archive_samples import Sample, Sampler
from library.inference.codec import CodecEngine
from library.inference.denoise import render_denoised
from library.inference.engine import Engine
from library.inference.ledger import Known
from library.inference.outputs import USUAL, Encoding, Format, bytes_per_pixel
from library.inference.sgr_files import encode_raw

LARGEST_RAW = 4 * 2**30
"""Bytes: ten times the largest that cameras write, and more than LibRaw takes."""
_PROBE = 64 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_OUT_OF_MEMORY = re.compile("allocate memory|out of memory")
"""In the RuntimeErrors that PyTorch raises on the CPU and on CUDA."""


@dataclass(frozen=True)
class Output:
    """A file that was made: its content, and how `os.stat` shows it."""

    sha256: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Made:
    """What the network made of a raw.

    write   puts the files where they were to go
    sample  makes the sample of the picture, if it is one to look at
    """

    write: Callable[[], None]
    sample: Callable[[], Sample | None] = lambda: None


@dataclass(frozen=True)
class Make:
    """How a raw becomes files, in steps that can overlap with those of other raws.

    read             decodes a file
    compute          makes files of some formats of it, as far as that needs no disk
    bytes_per_pixel  of formats: what a picture of theirs takes in memory, from when its raw is decoded until it is
                     written
    """

    read: Callable[[Path], RawImage]
    compute: Callable[[RawImage, Mapping[ArchiveFormat, Path]], Made]
    bytes_per_pixel: Callable[[Mapping[ArchiveFormat, Any]], int]


@dataclass(frozen=True)
class Result:
    """What became of one file.

    outputs     that are in their places
    known       of the raw; None while its bytes are not known to be one file
    error       why outputs are missing
    lasting     it is the raw's own fault, so that another attempt with the same bytes would end the same
    disk_is_full  nothing could be written, or nothing any more
    sample      of the picture, if it is one to look at
    peak_bytes  the most memory that the worker has held so far
    """

    outputs: dict[ArchiveFormat, Output]
    known: Known | None = None
    error: str | None = None
    lasting: bool = False
    disk_is_full: bool = False
    sample: Sample | None = None
    peak_bytes: int = 0


def denoising(engine: Engine, *, read: Callable[[Path], RawImage] = read_raw, encoding: Encoding = USUAL) -> Make:
    """Files of a denoiser."""
    sampler = Sampler()

    def compute(raw: RawImage, outputs: Mapping[ArchiveFormat, Path]) -> Made:
        files = cast(Mapping[Format, Path], outputs)
        rendering = render_denoised(raw, files, engine, encoding)
        return Made(lambda: rendering.write(files), lambda: sampler.sample(raw, rendering.centre))

    def num_bytes(outputs: Mapping[ArchiveFormat, Any]) -> int:
        # Of arbitrary gain, a picture is held in float32 until its brightness is found.
        whole = 0 if engine.bundle.gain == "absolute" else 12
        return 2 + whole + bytes_per_pixel(cast(Mapping[Format, Any], outputs))

    return Make(read, compute, num_bytes)


def encoding(
    engine: CodecEngine,
    *,
    quality: int | None,
    bpp: float | None,
    strength: float,
    read: Callable[[Path], RawImage] = read_raw,
) -> Make:
    """`.sgr` files of a codec; see `CodecEngine.encode`."""

    def compute(raw: RawImage, outputs: Mapping[ArchiveFormat, Path]) -> Made:
        encode_raw(raw, outputs["sgr"], engine, quality=quality, bpp=bpp, strength=strength)
        return Made(lambda: None)

    # The mosaic, its padded copy, and as many samples in float32.
    return Make(read, compute, lambda outputs: 8)


def make_outputs(job: Job, make: Make, staging: Path, lanes: Lanes | None = None) -> Result:
    """Make the outputs of one raw. Raises nothing that a file, a disk or too little memory could be the reason of.

    staging  an existing folder of this run, in the file system of the outputs
    lanes    where its steps run; left out, all of them in this thread
    """
    return dataclasses.replace(_make_outputs(job, make, staging, lanes), peak_bytes=_peak_bytes())


def _make_outputs(job: Job, make: Make, staging: Path, lanes: Lanes | None) -> Result:
    run = lanes.run if lanes else one_step_after_another
    before = known = None
    try:
        if job.size is not None and job.size > LARGEST_RAW:
            raise RawFileError(job.raw, f"has {job.size:,} bytes, more than any raw file: it is damaged, or none")
        before = _status_of(job.raw)
        with ExitStack() as stack:

            def read() -> tuple[RawImage, Known]:
                found = _read(job.raw, make.read)
                if lanes:
                    num_bytes = found[0].mosaic.size * make.bytes_per_pixel(job.outputs)
                    lanes.wait_for_room(num_bytes)
                    stack.callback(lanes.leave_room, num_bytes)
                return found

            raw, known = run("read", read)
            folder, descriptor = stack.enter_context(_private_folder(staging))
            staged: dict[ArchiveFormat, Path] = {f: folder / f"{f}{suffix_of(f)}" for f in job.outputs}
            made = run("compute", lambda: make.compute(raw, staged))
            placed: dict[ArchiveFormat, Output] = {}
            return run("write", lambda: _write(job, made, known, staged, descriptor, placed))
    except (RawFileError, ConfigError) as error:
        if before is None or (isinstance(error, RawFileError) and not error.lasting):
            return Result({}, None, str(error))
        try:
            after = look_at(job.raw)
            same = before == _status_of(job.raw)
        except RawFileError as gone:
            return Result({}, None, str(gone))
        return Result({}, after, str(error), True) if same else Result({}, None, str(_changed(job.raw)))
    except StillgrainError as error:
        names_a_file = isinstance(error, ImageFileError)
        return Result({}, known, str(error) if names_a_file else f"{job.raw}: {error}")
    except OSError as error:
        return _unwritten(next(iter(job.outputs.values())), error, {}, known)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        return Result(
            {}, known, f"{job.raw}: needs more memory than there is: give fewer workers, or a machine with more"
        )


def _read(path: str, read: Callable[[Path], RawImage]) -> tuple[RawImage, Known]:
    """A raw, and what is then known of its file. Raises RawFileError for one that changes meanwhile."""
    before = _status_of(path)
    try:
        with local_file(path) as local:
            raw = _named_anew(path, lambda: read(local))
            digest = content_digest(local, raw.sha256)
            probe = probe_of(str(local))
    except OSError as error:
        raise _unreadable(path, error) from None
    if _status_of(path) != before:
        raise _changed(path)
    return dataclasses.replace(raw, path=path), Known(before.size, before.mtime_ns, digest, probe)


def _named_anew(path: str, read: Callable[[], RawImage]) -> RawImage:
    """What is read of a copy speaks of the original."""
    try:
        return read()
    except RawFileError as error:
        raise (RawFileError(path, error.reason, lasting=error.lasting) if is_uri(path) else error) from None


def _write(
    job: Job,
    made: Made,
    known: Known,
    staged: Mapping[ArchiveFormat, Path],
    descriptor: int,
    placed: dict[ArchiveFormat, Output],
) -> Result:
    """Write the files aside, and when all are whole put them into their places."""
    target = next(iter(job.outputs.values()))
    try:
        made.write()
        outputs = {f: _output(path) for f, path in staged.items()}
        for output_format, target in job.outputs.items():
            _publish(staged[output_format].name, descriptor, target)
            placed[output_format] = outputs[output_format]
    except OSError as error:
        return _unwritten(target, error, placed, known)
    return Result(placed, known, sample=made.sample())


def look_at(path: str) -> Known:
    """Size, time of change, digest and probe of a raw.

    raises  RawFileError for a file that cannot be read, or that changes meanwhile
    """
    before = _status_of(path)
    try:
        with local_file(path) as local:
            digest = content_digest(local, digest_of(local))
            probe = probe_of(str(local))
    except OSError as error:
        raise _unreadable(path, error) from None
    if _status_of(path) != before:
        raise _changed(path)
    return Known(before.size, before.mtime_ns, digest, probe)


def probe_of(path: str) -> str:
    """A digest of a file's first and last bytes, for a fraction of the price of a whole one. Raises OSError."""
    with opened(path) as file:
        digest = hashlib.sha256(file.read(_PROBE))
        size = file.seek(0, os.SEEK_END)
        if size > _PROBE:
            file.seek(max(_PROBE, size - _PROBE))
            digest.update(file.read(_PROBE))
    return digest.hexdigest()


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file of this machine. Raises OSError."""
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


def has_room(staging: Path) -> bool:
    """Whether a small file can still be written: then it was a large one that did not fit."""
    probe = staging / "probe"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(_PROBE))
            os.fsync(file.fileno())
        return True
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink()


def ignores_case(staging: Path) -> bool:
    """Whether the file system of the outputs takes `A.dng` and `a.dng` for one name. Raises OSError."""
    (staging / "case").touch()
    return (staging / "CASE").exists()


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


def _status_of(path: str) -> Status:
    try:
        return status_of(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: str, error: OSError) -> RawFileError:
    if isinstance(error, FileNotFoundError):
        return RawFileError(path, "does not exist: check the path", lasting=False)
    where = "its store and your access to it" if is_uri(path) else "its permissions and the disk"
    return RawFileError(path, f"cannot be read ({error.strerror or error}): check {where}", lasting=False)


def _changed(path: str | Path) -> RawFileError:
    return RawFileError(path, "changed while it was read: run again when whoever writes it is done", lasting=False)


def _unwritten(target: str, error: OSError, placed: dict[ArchiveFormat, Output], known: Known | None) -> Result:
    reason = "it is on another disk than its output folder" if error.errno == errno.EXDEV else error.strerror
    problem = ImageFileError(target, f"cannot be written ({reason or error}): see to the disk and to its permissions")
    return Result(placed, known, str(problem), disk_is_full=error.errno in _FULL)


def _peak_bytes() -> int:
    """The most memory that this process has held, 0 where nobody knows. Not `getrusage`, whose number a process takes
    over from the one that forked it."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0
