"""Many raw files: which of their outputs are there already, and what became of the rest; each made exactly once.

The ledger in the output folder is the truth. An output is done when the same bytes, bundle, parameters and engine made
it and it is still there; anything else is work. One file's failure is recorded with its reason and harms no other.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from library.errors import DataError, RawFileError
from library.files.isolate import read_raw_isolated
from library.files.raw import read_raw
from library.inference.archive_events import Events
from library.inference.archive_inputs import RawFile, find_raws, named_raws, printable
from library.inference.archive_names import (
    ArchiveFormat,
    Job,
    facts_of_file,
    mirrored,
    refuse_names_that_differ_in_case_only,
    templated,
)
from library.inference.archive_places import description_of, fetch, is_uri, status_of
from library.inference.archive_samples import Samples, named
from library.inference.archive_work import (
    LARGEST_RAW,
    Make,
    Output,
    Result,
    clear_staging,
    denoising,
    digest_of,
    fresh_staging,
    has_room,
    ignores_case,
    link_or_copy,
    look_at,
    make_outputs,
    probe_of,
)
from library.inference.backends.base import BackendName, Precision, is_exact
from library.inference.engine import ENGINE_VERSION, Engine, TileSize, fixed_tile
from library.inference.frames import Noise
from library.inference.ledger import Entry, Known, Ledger, OutputRow, Status, output_key
from library.inference.outputs import USUAL, Encoding, Format
from library.inference.strength import FULL, Strength


@dataclass(frozen=True)
class Product:
    """What makes outputs of the same inputs differ.

    settings   all that changes a bit of them: precision, quality, strength
    of_format  what changes those of one format only
    """

    bundle_digest: str
    settings: Mapping[str, Any]
    of_format: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def of_denoiser(engine: Engine, encoding: Encoding = USUAL) -> Product:
        return Product(
            engine.bundle.digest,
            denoiser_settings(
                engine.precision,
                engine.tile,
                backend=engine.backend,
                strength=engine.strength,
                ensemble=engine.ensemble,
                noise=engine.noise,
            ),
            encoding.settings(),
        )

    def parameters(self, output_format: ArchiveFormat) -> dict[str, Any]:
        return {"format": output_format, **self.settings, **self.of_format.get(output_format, {})}

    def key(self, input_sha256: str, output_format: ArchiveFormat) -> str:
        return output_key(input_sha256, self.bundle_digest, self.parameters(output_format), ENGINE_VERSION)


def denoiser_settings(
    precision: Precision,
    tile: TileSize,
    *,
    backend: BackendName = "torch",
    strength: Strength = FULL,
    ensemble: bool = False,
    noise: Noise | None = None,
) -> dict[str, Any]:
    """The tile counts only where it shows: PyTorch in float32 is exact. What is at its default is left out, so that
    what was made before there was a choice stays done."""
    settings: dict[str, Any] = {"precision": precision}
    if not is_exact(backend, precision):
        settings["tile"] = fixed_tile(backend, tile)
    if backend != "torch":
        settings["backend"] = backend
    if not strength.is_full:
        settings["strength"] = {"luma": strength.luma, "chroma": strength.chroma}
    if ensemble:
        settings["ensemble"] = True
    if noise is not None:
        settings["noise"] = list(noise) if isinstance(noise, tuple) else noise.model_dump(mode="json")
    return settings


@dataclass
class Summary:
    """What a pass over files came to."""

    output: Path
    verb: str = "denoised"
    done: int = 0
    linked: int = 0
    """Of those done: their bytes were another raw's, whose outputs they share."""
    skipped: int = 0
    """Done before, and still there."""
    failures: dict[str, str] = field(default_factory=dict)
    """Raw file -> reason; of this run, and of earlier ones that need not be tried again."""
    remembered: int = 0
    """Of the failures: those of earlier runs."""
    seconds: float = 0.0
    peak_bytes: int = 0
    """The most memory that a worker has held."""
    page: Path | None = None
    """Where it can be looked at."""

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0

    def __str__(self) -> str:
        lines = [
            f"{self.output}: {self.done} {self.verb}, {self.skipped} done before, {len(self.failures)} failed, "
            f"{self.seconds:.1f} s"
        ]
        if self.done:
            lines[0] += f", {3600 * self.done / max(self.seconds, 1e-3):,.0f} files an hour"
        if self.linked:
            lines.append(f"  {self.linked} of them have the bytes of another raw, and share its outputs")
        if self.remembered:
            lines.append(f"  {self.remembered} failed before with the same bytes; retry_failed tries them again")
        lines += [f"  failed: {reason}" for reason in self.failures.values()]
        return "\n".join(lines + ([f"  {self.page}"] if self.page else []))


MakeAll = Callable[[Iterator[Job], int, Path], Generator[tuple[Job, Result, Status, float], None, None]]
"""Makes the outputs of jobs, of which there are at most so many, by way of a staging folder, and yields job, result,
status and seconds as they end."""


class Archive:
    """One run over the files of an output folder. The caller has opened the ledger.

    link  give raws of equal bytes the same file; False: a copy of it; None: make each anew
    """

    def __init__(
        self, ledger: Ledger, product: Product, summary: Summary, events: Events, *, link: bool | None = True
    ) -> None:
        self.ledger = ledger
        self.folder = Path(os.path.abspath(ledger.folder))
        self.product = product
        self.summary = summary
        self.events = events
        self.link = link
        self._prefix = len(str(self.folder).rstrip("/")) + 1
        self._inputs = ledger.inputs()
        self._rows = ledger.keys()
        self._made: dict[str, str] = {}
        """Outputs that are known to be whole, by their keys."""
        self._lasting: dict[str, str] = {}
        """Reasons of failures that the same bytes would meet again, by keys."""
        self._twins: list[Job] = []
        self._alone: set[str] = set()
        """Raws that what was made of their bytes could not be given to: they are made themselves, or fail so."""
        self._refused: list[tuple[Job, str]] = []
        """What cannot be tried, and why."""
        self._verify = False
        self._paths_by_key: dict[str, str] = {}
        """Outputs of this and of earlier runs, which may be gone or hold something else by now."""
        self._retouched: list[tuple[str, int]] = []
        """Outputs that are as they were recorded, but for their time of change, and that."""
        self._samples = Samples(self.folder, product.bundle_digest)

    def run(
        self,
        jobs: Iterable[Job],
        make_all: MakeAll,
        *,
        force: bool = False,
        retry_failed: bool = False,
        verify: bool = False,
    ) -> None:
        """Make what is not done; see `plan`. Every outcome is in the ledger when this returns.

        raises  DataError for a disk that takes nothing more, or nothing at all; ConfigError for outputs whose names its
                file system takes for one
        """
        start = time.monotonic()
        jobs = list(jobs)
        try:
            # A fresh staging folder shuts out workers of a dead run, before they replace what is found to be done here.
            if self._ignores_case():
                refuse_names_that_differ_in_case_only(jobs)
            todo = self.plan(jobs, force=force, retry_failed=retry_failed, verify=verify)
            num_failed = len(self._refused) + self.summary.remembered
            self.events.say("run", files=self.summary.skipped + len(todo) + num_failed, todo=len(todo))
            for job, reason in self._refused:
                self._fail(job, reason)
            while todo:
                staging = self._staging()
                self._twins = []
                with closing(make_all(self._without_twins(todo), len(todo), staging)) as results:
                    for job, result, status, seconds in results:
                        self.settle(job, result, status, seconds)
                        if result.disk_is_full and not has_room(staging):
                            raise DataError(
                                f"{self.folder}: takes nothing more, since its disk is full or read-only: make room, "
                                f"and the same command goes on ({self.summary.done} files were done)"
                            )
                # A twin whose like has failed for a reason of its own is tried by itself.
                todo = [twin for twin in self._twins if not self._settle_twin(twin, staging)]
        finally:
            clear_staging(self.folder)
        s = self.summary
        seconds = round(time.monotonic() - start, 3)
        self.events.say("end", done=s.done, skipped=s.skipped, failed=len(s.failures), seconds=seconds)

    def _staging(self) -> Path:
        with self._writing():
            return fresh_staging(self.folder)

    def _ignores_case(self) -> bool:
        with self._writing():
            return ignores_case(fresh_staging(self.folder))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written ({error.strerror}): make room, or choose another output folder"
            ) from None

    # --- what is to do ----------------------------------------------------------------------------------------------

    def plan(
        self, jobs: Iterable[Job], *, force: bool = False, retry_failed: bool = False, verify: bool = False
    ) -> list[Job]:
        """The jobs with the outputs that are still to be made. Reads a raw only where its size or time has changed.

        Counts the finished ones in the summary, and refuses those that would overwrite a file which no run into this
        folder has made: it may be somebody's original.

        force         make all anew
        retry_failed  also those that failed by their own fault; what failed by its surroundings is tried in any case
        verify        read every output, and make anew what is not what was recorded
        """
        todo, touched = [], []
        self._verify = verify
        for path, row in self._rows.items() if not force else ():
            if row.key is not None and row.status == "done":
                self._paths_by_key.setdefault(row.key, path)
            elif row.key is not None and row.status == "failed" and not retry_failed:
                self._lasting[row.key] = row.error or ""
        for job in jobs:
            if job.problem is not None:
                self._refused.append((job, job.problem))
                continue
            if (known := self._known(job)) is not None and known.sha256 is not None:
                job = replace(job, sha256=known.sha256)
                if self._inputs.get(job.raw) != known or not self._is_described_as_before(job):
                    facts = self._facts_of(job, known)
                    self._inputs |= facts
                    touched += facts.items()
            missing = job.outputs if force else self._missing(job)
            if not missing:
                self.summary.skipped += 1
                self._copy_sidecars(job)
            elif (reason := self._failed_before(job, missing)) is not None:
                self.summary.remembered += 1
                self.summary.failures[job.raw] = reason
            elif (reason := self._obstacle(job, missing)) is not None:
                self._refused.append((job, reason))
            else:
                todo.append(replace(job, outputs=missing))
        self.ledger.remember(touched)
        self.ledger.retouch(self._retouched)
        # Of raws that failed, or vanished before anybody came to them.
        is_done = {path for path, row in self._rows.items() if row.status == "done"}
        claimed = {self._relative(path) for job in todo for path in job.outputs.values()}
        stale = self._claims - is_done - claimed
        self.ledger.disclaim(path for path in stale if not os.path.exists(f"{self.folder}/{path}"))
        self.ledger.claim(claimed)
        return todo

    def _known(self, job: Job) -> Known | None:
        """What is known of the raw's bytes as they are now. Those of a raw that was done before are looked at where its
        size or time has changed; a new raw's are not."""
        known = self._inputs.get(job.raw)
        if known is None or known.sha256 is None:
            return known
        if (known.size, known.mtime_ns) == (job.size, job.mtime_ns) and self._is_described_as_before(job):
            return known
        try:
            found = look_at(job.raw)
        except RawFileError:
            return None  # making it will say what is wrong
        return replace(found, facts=known.facts) if found.sha256 == known.sha256 else found

    def _is_described_as_before(self, job: Job) -> bool:
        """Whether the JSON file of a headless raw is the one that was there when the raw was read."""
        known = self._inputs.get(description_of(job.raw))
        return job.description == ((known.size, known.mtime_ns) if known is not None else None)

    def _missing(self, job: Job) -> dict[ArchiveFormat, str]:
        if job.sha256 is None:
            return job.outputs
        missing = {}
        for output_format, path in job.outputs.items():
            key = self.product.key(job.sha256, output_format)
            if self._is_whole(path, key):
                self._made.setdefault(key, path)
            else:
                missing[output_format] = path
        return missing

    def _is_whole(self, path: str, key: str) -> bool:
        """Whether a file is the output of a key. It is read only where its time of change is another than its row's,
        as after a kill between a renaming and its row, or when asked to verify."""
        name = self._relative(path)
        row = self._rows.get(name)
        if row is None or row.status != "done" or row.key != key:
            return False
        try:
            status = os.stat(path)
            is_as_recorded = (status.st_size, status.st_mtime_ns) == (row.size, row.mtime_ns)
            if is_as_recorded and not self._verify:
                return True
            if status.st_size != row.size or digest_of(path) != row.sha256:
                return False
        except OSError:
            return False
        if not is_as_recorded:
            self._rows[name] = row._replace(mtime_ns=status.st_mtime_ns)
            self._retouched.append((name, status.st_mtime_ns))
        return True

    def _failed_before(self, job: Job, missing: Mapping[ArchiveFormat, str]) -> str | None:
        """Why the same bytes would fail again, None if that is not known."""
        if job.sha256 is None:
            return None
        reasons = [self._lasting.get(self.product.key(job.sha256, output_format)) for output_format in missing]
        return reasons[0] if None not in reasons else None

    def _obstacle(self, job: Job, missing: Mapping[ArchiveFormat, str]) -> str | None:
        for path in missing.values():
            if os.path.exists(path):
                if self._relative(path) not in self._claims:
                    return (
                        f"{job.raw}: would overwrite {path}, which was not made here; move it away, or use another "
                        "folder"
                    )
                if not is_uri(job.raw) and os.path.exists(job.raw) and os.path.samefile(path, job.raw):
                    return f"{job.raw}: is its own output {path}, and would be lost: give another folder"
        return None

    @cached_property
    def _claims(self) -> set[str]:
        """As they were before this run: what runs into this folder have written, or were about to."""
        return self.ledger.claims()

    # --- what became of it ------------------------------------------------------------------------------------------

    def settle(self, job: Job, result: Result, status: Status, seconds: float, *, linked: bool = False) -> None:
        """Put the end of a job into the ledger, the summary and the events.

        status  of outputs that are not there: `failed`, or `quarantined` when their process died
        """
        known = result.known
        if known is not None:
            before = self._inputs.get(job.raw)
            if known.facts is None and before is not None and before.sha256 in (None, known.sha256):
                known = replace(known, facts=before.facts)
            self._inputs |= self._facts_of(job, known)
        if result.sample is not None:
            self._samples.offer(named(result.sample, job.name))
        self.summary.peak_bytes = max(self.summary.peak_bytes, result.peak_bytes)
        entries = [self._entry(job, f, result, status, seconds) for f in job.outputs]
        for e in entries:
            self._rows[e.output_path] = OutputRow(
                e.key, e.status, e.output_size, e.output_mtime_ns, e.output_sha256, e.error
            )
        error = result.error
        facts = self._facts_of(job, known) if known is not None else {}
        missing = [e.output_path for e in entries if e.status != "done"]
        vacant = [path for path in missing if not os.path.lexists(f"{self.folder}/{path}")]
        try:
            self.ledger.record(*entries, known=facts, vacant=vacant)
        except DataError as problem:
            # The disk is full: what is not in the ledger is made again. The next file may be small enough.
            error = error or f"{job.raw}: was done, but {problem}"
        if error is not None:
            self._fail(job, error, seconds)
            if result.lasting:
                self._lasting |= {entry.key: error for entry in entries if entry.key is not None}
            return
        for entry in entries:
            assert entry.key is not None
            self._made[entry.key] = f"{self.folder}/{entry.output_path}"
        self.summary.done += 1
        self.summary.linked += linked
        self.events.say(
            "done",
            file=printable(job.raw),
            seconds=round(seconds, 3),
            linked=linked,
            **({"memory": result.peak_bytes} if result.peak_bytes else {}),
        )
        self._copy_sidecars(job)

    def _facts_of(self, job: Job, known: Known) -> dict[str, Known]:
        """What to remember of a raw, and of the file that describes it: each by its own path."""
        facts = {job.raw: known}
        return facts | ({description_of(job.raw): Known(*job.description)} if job.description is not None else {})

    def _entry(self, job: Job, output_format: ArchiveFormat, result: Result, status: Status, seconds: float) -> Entry:
        made, known = result.outputs.get(output_format), result.known
        # A failure without a digest is one that the same bytes need not meet again.
        digest = known.sha256 if known is not None and (made or result.lasting) else None
        return Entry(
            input_path=job.name,
            input_sha256=digest,
            input_size=known.size if known else job.size,
            input_mtime_ns=known.mtime_ns if known else job.mtime_ns,
            bundle_digest=self.product.bundle_digest,
            parameters=self.product.parameters(output_format),
            engine=ENGINE_VERSION,
            output_path=self._relative(job.outputs[output_format]),
            output_sha256=made.sha256 if made else None,
            output_size=made.size if made else None,
            output_mtime_ns=made.mtime_ns if made else None,
            status="done" if made else status,
            seconds=seconds,
            error=None if made else result.error,
        )

    def _fail(self, job: Job, reason: str, seconds: float = 0.0) -> None:
        self.summary.failures[printable(job.raw)] = reason
        self.events.say("failed", file=printable(job.raw), seconds=round(seconds, 3), reason=reason)

    # --- raws of equal bytes ----------------------------------------------------------------------------------------

    def _without_twins(self, todo: Sequence[Job]) -> Iterator[Job]:
        """The jobs, but for those whose bytes an earlier one has; these are set aside.

        Only files of one size, and of equal first and last bytes, are read as a whole to find out.
        """
        sizes = Counter(job.size for job in todo)
        to_make = {job.raw for job in todo}
        done = {p: known for p, known in self._inputs.items() if known.sha256 is not None and p not in to_make}
        sizes.update({known.size for known in done.values()})
        seen: dict[tuple[int, str | None], list[str]] = {}
        for path, known in done.items():
            seen.setdefault((known.size, known.probe), []).append(path)
        digests = {path: known.sha256 for path, known in done.items() if known.sha256 is not None}
        digests |= {job.raw: job.sha256 for job in todo if job.sha256 is not None}
        for job in todo:
            may_be_twin = job.size is not None and job.size <= LARGEST_RAW and sizes[job.size] > 1
            if self.link is not None and may_be_twin:
                try:
                    likes = seen.setdefault((job.size or 0, probe_of(job.raw)), [])
                    if job.raw not in self._alone and self._is_twin(job, likes, digests, to_make):
                        continue
                    likes.append(job.raw)
                except (OSError, RawFileError):
                    pass  # making it will say what is wrong
            self.events.say("started", file=job.raw)
            yield job

    def _is_twin(self, job: Job, likes: Sequence[str], digests: dict[str, str], to_make: set[str]) -> bool:
        """Whether a job has the bytes of one of its likes, and will get, or can have, that one's outputs."""
        mine = job.sha256
        for path in likes:
            if path == job.raw:
                continue
            for unread in {path, job.raw} - digests.keys():
                digests[unread] = look_at(unread).sha256 or ""
            mine = mine or digests[job.raw]
            if mine == digests[path] and (path in to_make or all(self._has(mine, f) for f in job.outputs)):
                self._twins.append(replace(job, sha256=mine))
                return True
        return False

    def _has(self, sha256: str, output_format: ArchiveFormat) -> bool:
        """Whether there is an output, or a lasting failure, of these bytes."""
        key = self.product.key(sha256, output_format)
        if key in self._paths_by_key and self._is_whole(path := f"{self.folder}/{self._paths_by_key[key]}", key):
            self._made.setdefault(key, path)
        return key in self._made or key in self._lasting

    def _settle_twin(self, job: Job, staging: Path) -> bool:
        """Give a job the outputs, or the failure, of another raw with its bytes. False if that has neither; and if they
        cannot be given to it, which then is made alone: a second time it would end the same."""
        assert job.sha256 is not None
        keys = {f: self.product.key(job.sha256, f) for f in job.outputs}
        reason = next((self._lasting[key] for key in keys.values() if key in self._lasting), None)
        if reason is None and not all(key in self._made for key in keys.values()):
            return False
        self._alone.add(job.raw)
        try:
            known = look_at(job.raw)
        except RawFileError as error:
            self.settle(job, Result({}, None, str(error)), "failed", 0.0)
            return True
        if known.sha256 != job.sha256:
            return False
        if reason is not None:
            self.settle(
                job, Result({}, known, f"{job.raw}: has the bytes of a raw that failed: {reason}", True), "failed", 0.0
            )
            return True
        outputs: dict[ArchiveFormat, Output] = {}
        begun = time.monotonic()
        try:
            for output_format, target in job.outputs.items():
                source = self._made[keys[output_format]]
                if not self._is_whole(source, keys[output_format]):
                    del self._made[keys[output_format]]
                    return False
                outputs[output_format] = link_or_copy(source, target, staging, link=bool(self.link))
        except OSError:
            return False  # making it will say what is wrong
        self.settle(job, Result(outputs, known), "failed", time.monotonic() - begun, linked=True)
        return True

    # --- sidecars ---------------------------------------------------------------------------------------------------

    def _copy_sidecars(self, job: Job) -> None:
        """Bring copies of sidecars up to date; one that somebody else wrote or has edited is left as it is."""
        for source, target in job.sidecars:
            try:
                if os.path.exists(target):
                    theirs, ours, copied = status_of(source), os.stat(target), self._inputs.get(target)
                    same = (ours.st_size, ours.st_mtime_ns) == (theirs.size, theirs.mtime_ns)
                    if same and copied is None:  # a run was killed before it could say that this copy is its own
                        self._remember_sidecar(target, ours)
                    if same or copied is None or (copied.size, copied.mtime_ns) != (ours.st_size, ours.st_mtime_ns):
                        continue
                os.makedirs(os.path.dirname(target), exist_ok=True)
                aside = self.folder / ".stillgrain" / "sidecar.tmp"
                aside.unlink(missing_ok=True)  # of a run that was killed; the copy of a read-only file is read-only
                fetch(source, aside)
                with open(aside, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(aside, target)
                ours = os.stat(target)
            except OSError as error:
                self.summary.failures[source] = f"{source}: cannot be copied to {target} ({error.strerror or error})"
                continue
            self._remember_sidecar(target, ours)

    def _remember_sidecar(self, target: str, ours: os.stat_result) -> None:
        self._inputs[target] = Known(ours.st_size, ours.st_mtime_ns)
        with suppress(DataError):  # a full disk: then the copy counts as somebody else's
            self.ledger.remember([(target, self._inputs[target])])

    def _relative(self, path: str) -> str:
        return path[self._prefix :]


def jobs_of(
    inputs: Sequence[str | Path],
    output: Path,
    formats: Sequence[ArchiveFormat],
    *,
    ledger: Ledger | None = None,
    template: str | None = None,
    sidecars: bool = True,
) -> list[Job]:
    """A job for every raw of some inputs (see `find_raws`), named by the tree or by a template.

    ledger  remembers what metadata says, so that only new raws are opened for a template
    raises  ConfigError
    """
    raws = find_raws(inputs, output)
    if not sidecars:
        raws = [replace(raw, sidecars=()) for raw in raws]
    if template is None:
        return mirrored(raws, output, formats)
    remembered = ledger.inputs() if ledger is not None else {}
    read: dict[str, Known] = {}

    def facts_of(raw: RawFile) -> Mapping[str, str]:
        known = read.get(raw.path) or remembered.get(raw.path)
        same = known is not None and (known.size, known.mtime_ns) == (raw.size, raw.mtime_ns)
        if known is not None and same and known.facts is not None:
            return known.facts
        facts = facts_of_file(raw.path)
        if raw.size is not None and raw.mtime_ns is not None:
            old = known if known is not None and same else Known(raw.size, raw.mtime_ns)
            # What changed keeps the digest of its old bytes under its old size and time: it is looked at again.
            if known is None or same:
                read[raw.path] = replace(old, facts=facts)
        return facts

    jobs = templated(raws, output, formats, template, facts_of)
    if ledger is not None:
        ledger.remember(read.items())
    return jobs


def denoise_files(
    raws: Sequence[Path],
    output: Path,
    engine: Engine,
    output_format: Format,
    *,
    isolate: bool = False,
    encoding: Encoding = USUAL,
    progress: Callable[[list[Job]], Iterable[Job]] = iter,
) -> Summary:
    """Denoise files in this process, one after another, into `output/<stem>.<suffix>`.

    encoding  how formats that can be written in several ways are
    isolate   decode in a child process, where a file that crashes or hangs the decoder harms only itself
    progress  wraps the list of jobs, to show how far it is
    raises    ConfigError when two files would write the same output; DataError when the ledger cannot be used
    """
    start = time.monotonic()
    summary = Summary(output)
    jobs = [
        replace(job, name=job.raw)
        for job in templated(named_raws(raws), output, [output_format], "{stem}.{ext}", lambda raw: {})
    ]
    with Ledger.open(output) as ledger, Events.open(output) as events:
        archive = Archive(ledger, Product.of_denoiser(engine, encoding), summary, events)
        make = denoising(engine, read=read_raw_isolated if isolate else read_raw, encoding=encoding)
        archive.run(jobs, one_after_another(make, progress), retry_failed=True)
    summary.seconds = time.monotonic() - start
    return summary


def one_after_another(make: Make, progress: Callable[[list[Job]], Iterable[Job]] = iter) -> MakeAll:
    """Makes everything in this process, for `Archive.run`."""

    def make_all(
        jobs: Iterator[Job], total: int, staging: Path
    ) -> Generator[tuple[Job, Result, Status, float], None, None]:
        for job in progress(list(jobs)):
            begun = time.monotonic()
            yield job, make_outputs(job, make, staging), "failed", time.monotonic() - begun

    return make_all
