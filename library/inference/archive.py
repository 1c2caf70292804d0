"""Many raw files: which outputs they get, which of them are there already, and what became of the rest.

The ledger in the output folder is the truth. An output is done when the same input, bundle, parameters and engine made
it and it is still there; anything else is work. One file's failure is recorded with its reason and harms no other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from library.errors import ConfigError, StillgrainError
from library.files.raw import RAW_SUFFIXES
from library.inference.denoise import denoise_file
from library.inference.engine import ENGINE_VERSION, Engine, Precision
from library.inference.ledger import Entry, Ledger, Status
from library.inference.outputs import ENCODERS, Format, Written


@dataclass(frozen=True)
class Job:
    """One raw file and the outputs it is to get."""

    raw: Path
    name: str
    """The raw's name in the ledger: relative to the archive, or absolute when files were named one by one."""
    outputs: dict[Format, Path]
    """Absolute paths."""
    size: int = 0
    mtime_ns: int = 0
    """Size and time of change before it was read, so that a file that changes meanwhile is not taken for done."""


@dataclass(frozen=True)
class Product:
    """What makes outputs of the same inputs differ."""

    bundle_digest: str
    precision: Precision

    def parameters(self, output_format: Format) -> dict[str, Any]:
        return {"format": output_format, "precision": self.precision}


@dataclass
class Summary:
    """What a pass over files came to."""

    output: Path
    done: int = 0
    skipped: int = 0
    """Done before, and still there."""
    failures: dict[str, str] = field(default_factory=dict)
    """Raw file -> reason."""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0

    def __str__(self) -> str:
        lines = [
            f"{self.output}: {self.done} denoised, {self.skipped} done before, {len(self.failures)} failed, "
            f"{self.seconds:.1f} s"
        ]
        return "\n".join(lines + [f"  failed: {reason}" for reason in self.failures.values()])


def jobs_of_files(raws: Sequence[Path], output: Path, output_format: Format) -> list[Job]:
    """OUT/<stem>.<suffix> for each named file.

    raises  ConfigError when two of them would write the same file
    """
    jobs: dict[Path, Job] = {}
    for raw in raws:
        source = Path(os.path.abspath(raw))
        target = Path(os.path.abspath(output)) / f"{raw.stem}{ENCODERS[output_format].suffix}"
        if target in jobs and jobs[target].raw != source:
            raise ConfigError(
                f"{jobs[target].raw} and {raw} would both be written to {target}: denoise them into different folders"
            )
        jobs[target] = Job(source, str(source), {output_format: target})
    return list(jobs.values())


def jobs_of_tree(archive: Path, output: Path, formats: Sequence[Format]) -> Iterator[Job]:
    """Every raw file below a folder, with outputs that mirror its place; in order of their names.

    Two raws that differ only in their suffix keep it in their outputs' names. The output folder is not searched.

    raises  ConfigError when the archive is no folder, or two formats have the same suffix
    """
    if os.path.abspath(archive) == os.path.abspath(output):
        raise ConfigError(f"output: is the folder of the raw files itself, {archive}; give another, or one inside it")
    if not archive.is_dir():
        raise ConfigError(f"raws: {archive} is not a folder; give the folder that holds the raw files")
    suffixes = [ENCODERS[f].suffix for f in formats]
    if len(set(suffixes)) < len(suffixes):
        raise ConfigError(
            f"formats: {', '.join(formats)} would write the same file names; run them into different folders"
        )
    for folder, subfolders, names in os.walk(archive):
        here = Path(folder)
        subfolders[:] = sorted(
            s for s in subfolders if not s.startswith(".") and (here / s).absolute() != output.absolute()
        )
        raws = sorted(n for n in names if not n.startswith(".") and Path(n).suffix.lower() in RAW_SUFFIXES)
        stems = [Path(n).stem for n in raws]
        for name in raws:
            relative = (here / name).relative_to(archive)
            base = name if stems.count(Path(name).stem) > 1 else Path(name).stem
            targets: dict[Format, Path] = {
                f: (output / relative.parent / f"{base}{ENCODERS[f].suffix}").absolute() for f in formats
            }
            yield Job((here / name).absolute(), str(relative), targets)


def pending(jobs: Iterable[Job], ledger: Ledger, product: Product, summary: Summary) -> Iterator[Job]:
    """The jobs with the outputs that are still to be made. Reads no file that is done.

    Counts the finished ones in the summary, and lists there as failed those that would overwrite a file which no run
    into this folder has made: it may be somebody's original.
    """
    for job in jobs:
        try:
            stat = job.raw.stat()
        except OSError:
            yield job  # Reading it will say what is wrong.
            continue
        seen = replace(job, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
        missing: dict[Format, Path] = {
            f: path for f, path in job.outputs.items() if not _is_done(seen, f, ledger, product)
        }
        foreign = [p for p in missing.values() if p.exists() and not ledger.knows(os.path.relpath(p, ledger.folder))]
        if foreign:
            summary.failures[str(job.raw)] = (
                f"{job.raw}: would overwrite {foreign[0]}, which was not made here; move it away, or use another folder"
            )
        elif missing:
            yield replace(seen, outputs=missing)
        else:
            summary.skipped += 1


def _is_done(job: Job, output_format: Format, ledger: Ledger, product: Product) -> bool:
    return ledger.is_done(
        job.name,
        job.size,
        job.mtime_ns,
        product.bundle_digest,
        product.parameters(output_format),
        ENGINE_VERSION,
    )


def denoise_files(
    raws: Sequence[Path],
    output: Path,
    engine: Engine,
    output_format: Format,
    *,
    progress: Callable[[list[Job]], Iterable[Job]] = iter,
) -> Summary:
    """Denoise files in this process, one after another, into `output/<stem>.<suffix>`.

    progress  wraps the list of jobs, to show how far it is
    raises    ConfigError when two files would write the same output; DataError when the ledger cannot be used
    """
    start = time.monotonic()
    summary = Summary(output)
    product = Product(engine.bundle.digest, engine.precision)
    with Ledger.open(output) as ledger:
        todo = list(pending(jobs_of_files(raws, output, output_format), ledger, product, summary))
        for job in progress(todo):
            began = time.monotonic()
            try:
                written, error = denoise_file(job.raw, job.outputs, engine), None
            except StillgrainError as problem:
                written, error = None, str(problem)
            record(ledger, job, product, summary, written, error, time.monotonic() - began)
    summary.seconds = time.monotonic() - start
    return summary


def record(
    ledger: Ledger,
    job: Job,
    product: Product,
    summary: Summary,
    written: Sequence[Written] | None,
    error: str | None,
    seconds: float,
    *,
    status: Status = "failed",
) -> None:
    """Put the end of a job into the ledger and the summary.

    written  the outputs that were made, or None with an `error`
    status   of a job without outputs: `failed`, or `quarantined` when it took its process down
    """
    made = {w.format: w for w in written or ()}
    for output_format, path in job.outputs.items():
        w = made.get(output_format)
        output = path.stat() if w else None
        ledger.record(
            Entry(
                input_path=job.name,
                input_sha256=w.input_sha256 if w else None,
                input_size=job.size,
                input_mtime_ns=job.mtime_ns,
                bundle_digest=product.bundle_digest,
                parameters=product.parameters(output_format),
                engine=ENGINE_VERSION,
                output_path=os.path.relpath(path, ledger.folder),
                output_sha256=w.sha256 if w else None,
                output_size=output.st_size if output else None,
                output_mtime_ns=output.st_mtime_ns if output else None,
                status="done" if w else status,
                seconds=seconds,
                error=error,
            )
        )
    if error is None:
        summary.done += 1
    else:
        summary.failures[str(job.raw)] = error
