"""Each output exactly once, whatever happens: run again, edit, damage, fill the disk, kill."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.bundle import load_bundle
from library.errors import ConfigError
from library.files.dng import write_cfa_dng
from library.files.isolate import read_raw_isolated
from library.files.metadata import ImageMetadata
from library.files.raw import RawImage, read_raw
from library.inference.archive import Archive, Product, Summary, jobs_of, one_after_another
from library.inference.archive_events import FILE, Events, read_events
from library.inference.archive_names import ArchiveFormat, Job
from library.inference.archive_status import archive_status
from library.inference.archive_work import Made, Make, Result, denoising
from library.inference.engine import Engine
from library.inference.ledger import Ledger, Status
from library.inference.strength import Strength

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def engine(small_bundle: Path) -> Engine:
    return Engine(load_bundle(small_bundle))


def write_raw(path: Path, seed: int, side: int = 64) -> Path:
    """A small raw; another seed gives other samples in a file of the same size."""
    mosaic = np.random.default_rng(seed).integers(600, 9000, (side, side)).astype(np.uint16)
    black_level = np.full((2, 2), 512.0)
    metadata = ImageMetadata(iso=800.0)
    write_cfa_dng(path, mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=metadata)
    return path


@pytest.fixture
def raws(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.dng", "trip/b.dng", "trip/c.dng")):
        write_raw(tmp_path / "raws" / name, seed)
    return tmp_path / "raws"


def run(
    raws: Path,
    engine: Engine,
    *,
    formats: tuple[ArchiveFormat, ...] = ("dng",),
    read: Callable[[Path], RawImage] = read_raw,
    make: Make | None = None,
    product: Product | None = None,
    link: bool | None = True,
    **options: bool,
) -> Summary:
    """Denoise what is not done into the folder `out` beside the raws, in this process."""
    output = raws.with_name("out")
    summary = Summary(output)
    with Ledger.open(output) as ledger, Events.open(output) as events:
        archive = Archive(ledger, product or Product.of_denoiser(engine), summary, events, link=link)
        archive.run(
            jobs_of([raws], output, formats), one_after_another(make or denoising(engine, read=read)), **options
        )
    return summary


def outputs(raws: Path) -> dict[str, str]:
    """Path -> SHA-256 of all that is in the output folder, but for ledger, events and samples."""
    folder = raws.with_name("out")
    names = ("ledger.sqlite", "ledger.lock", "samples.json")
    own = {folder / FILE, *(folder / ".stillgrain" / name for name in names)}
    paths = [path for path in folder.rglob("*") if path.is_file() and path not in own]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def run_and_kill_before_a_row(raws: Path, engine: Engine, output_format: ArchiveFormat) -> None:
    """A kill between the renaming of the first output and its row in the ledger."""

    class Killed(BaseException):
        pass

    class Deaf(Ledger):
        def record(self, *entries: Any, **_: Any) -> None:
            raise Killed

    out = raws.with_name("out")
    with Deaf.open(out) as ledger, Events.open(out) as events:
        archive = Archive(ledger, Product.of_denoiser(engine), Summary(out), events)
        with pytest.raises(Killed):
            archive.run(jobs_of([raws], out, [output_format]), one_after_another(denoising(engine)))


def change_unseen(path: Path, content: bytes) -> None:
    """Other bytes of the same number, with the old time of change."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.done, summary.skipped, len(summary.failures)


# --- exactly once -----------------------------------------------------------------------------------------------------


def test_running_again_does_nothing_and_reads_no_raw(raws: Path, engine: Engine) -> None:
    assert counts(run(raws, engine)) == (3, 0, 0)
    made = outputs(raws)
    assert made.keys() == {"a.dng", "trip/b.dng", "trip/c.dng"}
    for path in raws.rglob("*.dng"):
        change_unseen(path, bytes(path.stat().st_size))
    assert counts(run(raws, engine)) == (0, 3, 0)
    assert outputs(raws) == made


def test_a_touched_raw_is_looked_at_once_and_an_edited_one_is_made_anew(raws: Path, engine: Engine) -> None:
    run(raws, engine)
    made = outputs(raws)
    os.utime(raws / "a.dng", (1, 1))
    assert counts(run(raws, engine)) == (0, 3, 0)
    change_unseen(raws / "a.dng", bytes((raws / "a.dng").stat().st_size))
    assert counts(run(raws, engine)) == (0, 3, 0)  # it is known by its new time
    write_raw(raws / "a.dng", seed=7)
    assert counts(run(raws, engine)) == (1, 2, 0)
    assert {name for name, digest in outputs(raws).items() if digest != made[name]} == {"a.dng"}


@pytest.mark.parametrize("change", ["bundle", "parameter"])
def test_another_bundle_or_parameter_is_new_work_and_comes_back_as_such(
    change: str, raws: Path, engine: Engine
) -> None:
    ours = Product.of_denoiser(engine)
    other = Product("d" * 64, ours.settings) if change == "bundle" else Product(ours.bundle_digest, {"precision": "x"})
    assert counts(run(raws, engine)) == (3, 0, 0)
    assert counts(run(raws, engine, product=other)) == (3, 0, 0)
    assert counts(run(raws, engine, product=other)) == (0, 3, 0)
    assert counts(run(raws, engine)) == (3, 0, 0)


def test_another_engine_is_new_work(raws: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(raws, engine)
    monkeypatch.setattr("library.inference.archive.ENGINE_VERSION", "another")
    assert counts(run(raws, engine)) == (3, 0, 0)


def test_a_new_format_is_work_and_the_others_are_left_alone(raws: Path, engine: Engine) -> None:
    run(raws, engine)
    times = {path: path.stat().st_mtime_ns for path in raws.with_name("out").rglob("*.dng")}
    assert counts(run(raws, engine, formats=("dng", "exr"))) == (3, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in raws.with_name("out").rglob("*.dng")} == times
    assert len(outputs(raws)) == 6


def test_an_output_that_is_gone_or_cut_short_is_made_again_and_a_forged_one_when_asked_to_verify(
    raws: Path, engine: Engine
) -> None:
    run(raws, engine)
    made, out = outputs(raws), raws.with_name("out")
    (out / "a.dng").unlink()
    (out / "trip" / "b.dng").write_bytes(b"cut short")
    change_unseen(out / "trip" / "c.dng", bytes((out / "trip" / "c.dng").stat().st_size))
    assert counts(run(raws, engine)) == (2, 1, 0)
    assert counts(run(raws, engine, verify=True)) == (1, 2, 0)
    assert outputs(raws) == made
    assert counts(run(raws, engine, verify=True)) == (0, 3, 0)


def test_what_a_killed_run_has_replaced_is_made_again_and_a_touched_output_is_read_once(
    raws: Path, engine: Engine, small_bundle: Path
) -> None:
    """Its row still tells of the file before, which had the same size."""
    half = Engine(load_bundle(small_bundle), strength=Strength(0.5, 0.5))
    out = raws.with_name("out")
    assert counts(run(raws, engine, formats=("tiff",))) == (3, 0, 0)
    made = outputs(raws)
    run_and_kill_before_a_row(raws, half, "tiff")
    assert {name for name, digest in outputs(raws).items() if digest != made[name]} == {"a.tiff"}
    os.utime(out / "trip" / "b.tiff", (1, 1))
    assert counts(run(raws, engine, formats=("tiff",))) == (1, 2, 0)
    assert outputs(raws) == made
    change_unseen(out / "trip" / "b.tiff", bytes((out / "trip" / "b.tiff").stat().st_size))
    assert counts(run(raws, engine, formats=("tiff",))) == (0, 3, 0)  # it is known by its new time


def test_force_makes_everything_anew(raws: Path, engine: Engine) -> None:
    run(raws, engine)
    before = {path: path.stat().st_ino for path in raws.with_name("out").rglob("*.dng")}
    assert counts(run(raws, engine, force=True)) == (3, 0, 0)
    assert all(path.stat().st_ino != inode for path, inode in before.items())


def test_a_raw_that_failed_by_its_own_fault_is_tried_again_when_it_changed_or_when_asked(
    raws: Path, engine: Engine
) -> None:
    (raws / "bad.dng").write_bytes(b"II*\0 cut off")
    tried: list[str] = []

    def read(path: Path) -> RawImage:
        tried.append(path.name)
        return read_raw(path)

    first = run(raws, engine, read=read)
    assert counts(first) == (3, 0, 1)
    tried.clear()
    again = run(raws, engine, read=read)
    assert (counts(again), again.failures, again.remembered) == ((0, 3, 1), first.failures, 1)
    assert tried == []
    assert counts(run(raws, engine, read=read, retry_failed=True)) == (0, 3, 1)
    assert tried == ["bad.dng"]
    write_raw(raws / "bad.dng", seed=9)
    assert counts(run(raws, engine)) == (1, 3, 0)


def test_what_the_machine_did_to_a_raw_is_not_remembered_as_its_own_fault(
    raws: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def stumble(path: Path) -> bytes:
        if path.name == "b.dng":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        with ThreadPoolExecutor(1) as fresh:  # a thread that has no child yet
            summary = fresh.submit(run, raws, engine, read=read_raw_isolated).result()
    assert counts(summary) == (0, 0, 3)
    assert all(f"{name}: the process that reads files cannot" in why for name, why in summary.failures.items())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stumble)
        assert counts(run(raws, engine)) == (2, 0, 1)
    assert counts(run(raws, engine)) == (1, 2, 0)


def test_somebodys_own_file_is_not_overwritten_where_a_raw_had_failed(raws: Path, engine: Engine) -> None:
    whole, mine = (raws / "a.dng").read_bytes(), raws.with_name("out") / "a.dng"
    (raws / "a.dng").write_bytes(b"II*\0 cut off")
    assert counts(run(raws, engine)) == (2, 0, 1)
    mine.write_bytes(b"made by hand in another program")
    (raws / "a.dng").write_bytes(whole)
    summary = run(raws, engine)
    assert "would overwrite" in summary.failures[str(raws / "a.dng")]
    assert mine.read_bytes() == b"made by hand in another program"


def test_outputs_that_differ_in_case_only_are_refused_where_the_disk_takes_them_for_one(
    raws: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raw(raws / "A.dng", seed=5)
    stat = os.stat

    def stat_by_any_case(path: Any, **options: Any) -> os.stat_result:
        try:
            return stat(path, **options)
        except FileNotFoundError:
            folder, name = os.path.split(path)
            return stat(os.path.join(folder, name.lower()), **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat_by_any_case)
        with pytest.raises(ConfigError, match=r"raws/A\.dng and .*raws/a\.dng would both .* tells no capitals"):
            run(raws, engine)
    assert outputs(raws) == {}
    assert counts(run(raws, engine)) == (4, 0, 0)


# --- raws of equal bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [True, False, None])
def test_equal_raws_are_computed_once_and_share_a_file_or_get_copies(
    link: bool | None, raws: Path, engine: Engine
) -> None:
    shutil.copy(raws / "a.dng", raws / "trip" / "a.dng")
    shutil.copy(raws / "a.dng", raws / "z.dng")
    made: list[str] = []

    def read(path: Path) -> RawImage:
        made.append(path.name)
        return read_raw(path)

    assert counts(run(raws, engine, read=read, link=link)) == (5, 0, 0)
    same = [raws.with_name("out") / name for name in ("a.dng", "trip/a.dng", "z.dng")]
    assert len(made) == (5 if link is None else 3)
    assert len({path.stat().st_ino for path in same}) == (1 if link else 3)
    if link is not None:
        assert len({path.read_bytes() for path in same}) == 1
    assert counts(run(raws, engine, link=link)) == (0, 5, 0)
    made.clear()
    other = Product("d" * 64, Product.of_denoiser(engine).settings)
    assert counts(run(raws, engine, read=read, product=other, link=link)) == (5, 0, 0)  # their digests are known by now
    assert len(made) == (5 if link is None else 3)


def test_a_raw_that_was_moved_takes_its_output_along(raws: Path, engine: Engine) -> None:
    run(raws, engine)
    before = outputs(raws)["a.dng"]
    (raws / "a.dng").rename(raws / "trip" / "moved.dng")

    def read(path: Path) -> RawImage:
        raise AssertionError(f"{path} was computed again")

    summary = run(raws, engine, read=read)
    assert (counts(summary), summary.linked) == ((1, 2, 0), 1)
    assert outputs(raws)["trip/moved.dng"] == before


def test_a_raw_whose_twin_fails_is_tried_only_if_the_bytes_are_not_at_fault(raws: Path, engine: Engine) -> None:
    shutil.copy(raws / "a.dng", raws / "z.dng")
    for name in ("bad1.dng", "bad2.dng"):
        (raws / name).write_bytes(b"II*\0 cut off")
    tried: list[str] = []

    def read(path: Path) -> RawImage:
        tried.append(path.name)
        if tried[-1] == "a.dng":
            path.unlink()  # while it is read
        return read_raw(path)

    summary = run(raws, engine, read=read)
    assert tried == ["a.dng", "bad1.dng", "b.dng", "c.dng", "z.dng"]
    assert counts(summary) == (3, 0, 3)
    assert "does not exist" in summary.failures[str(raws / "a.dng")]
    assert "bytes of a raw that failed" in summary.failures[str(raws / "bad2.dng")]
    assert outputs(raws).keys() == {"trip/b.dng", "trip/c.dng", "z.dng"}


def test_a_duplicate_that_cannot_be_given_what_its_like_has_is_made_by_itself_or_fails(
    raws: Path, engine: Engine
) -> None:
    """It was set aside again, for ever, since what its bytes become was known."""
    out = raws.with_name("out")
    for original, duplicate in (("a.dng", "x/a.dng"), ("trip/b.dng", "y.dng"), ("trip/c.dng", "z.dng")):
        (raws / duplicate).parent.mkdir(exist_ok=True)
        shutil.copy(raws / original, raws / duplicate)
    out.mkdir()
    (out / "x").write_bytes(b"a file where a folder should be")
    rounds: list[list[str]] = []

    def read(path: Path) -> RawImage:
        if path.name == "c.dng":
            (out / "trip" / "b.dng").unlink()
            write_raw(raws / "z.dng", seed=9)
        return read_raw(path)

    def make_all(
        jobs: Iterator[Job], total: int, staging: Path
    ) -> Generator[tuple[Job, Result, Status, float], None, None]:
        rounds.append([])
        assert len(rounds) < 4
        for result in one_after_another(denoising(engine, read=read))(jobs, total, staging):
            rounds[-1].append(result[0].name)
            yield result

    summary = Summary(out)
    with Ledger.open(out) as ledger, Events.open(out) as events:
        archive = Archive(ledger, Product.of_denoiser(engine), summary, events)
        archive.run(jobs_of([raws], out, ["dng"]), make_all)
    assert rounds == [["a.dng", "trip/b.dng", "trip/c.dng"], ["x/a.dng", "y.dng", "z.dng"]]
    assert (summary.done, summary.failures.keys()) == (5, {str(raws / "x" / "a.dng")})
    (out / "x").unlink()
    assert counts(run(raws, engine)) == (2, 4, 0)  # with the output of b.dng, which went away


# --- faults -----------------------------------------------------------------------------------------------------------


def grow(raw: str) -> None:
    with open(raw, "ab") as file:
        file.write(b"more")


def rewrite(raw: str) -> None:
    write_raw(Path(raw), seed=99)


def cut(raw: str) -> None:
    os.truncate(raw, 1000)


def remove(raw: str) -> None:
    os.unlink(raw)


@pytest.mark.parametrize("disturb", [grow, rewrite, cut, remove])
def test_a_raw_that_changes_while_it_is_read_fails_and_nothing_is_written(
    disturb: Callable[[str], None], raws: Path, engine: Engine
) -> None:
    def read(path: Path) -> RawImage:
        if path.name == "b.dng":
            disturb(str(path))
        return read_raw(path)

    summary = run(raws, engine, read=read)
    assert counts(summary) == (2, 0, 1)
    assert ("does not exist" if disturb is remove else "changed while it was read") in next(
        iter(summary.failures.values())
    )
    assert outputs(raws).keys() == {"a.dng", "trip/c.dng"}
    write_raw(raws / "trip" / "b.dng", seed=1)
    assert counts(run(raws, engine)) == (1, 2, 0)


def claims_to_be_huge(data: bytes) -> bytes:
    """A DNG whose header says 100,000 x 100,000: TIFF 6.0 tags 256 and 257, each a LONG."""
    for tag in (256, 257):
        entries = [struct.pack("<HHI", tag, kind, 1) for kind in (3, 4)]
        position = max(data.find(entry) for entry in entries)
        assert position > 0
        data = data[:position] + struct.pack("<HHII", tag, 4, 1, 100_000) + data[position + 12 :]
    return data


def test_hostile_files_are_each_reported_with_a_reason_and_harm_no_other(raws: Path, engine: Engine) -> None:
    whole = (raws / "a.dng").read_bytes()
    rng = np.random.default_rng(0)
    (raws / "bad").mkdir()
    for number, length in enumerate((0, 1, 8, 100, 500, 2000, len(whole) // 2, len(whole) - 200)):
        (raws / "bad" / f"cut{number}.dng").write_bytes(whole[:length])
    (raws / "bad" / "huge.dng").write_bytes(claims_to_be_huge(whole))
    (raws / "bad" / "noise.cr2").write_bytes(b"II*\0" + rng.bytes(4000))
    (raws / "bad" / "picture.nef").write_bytes(b"\xff\xd8\xff" + rng.bytes(4000))
    (raws / "bad" / "link.dng").symlink_to(raws / "nowhere.dng")
    with open(raws / "bad" / "vast.dng", "wb") as file:
        file.truncate(2**40)
    os.mkfifo(raws / "bad" / "pipe.dng")
    (raws / "bad" / "folder.dng").mkdir()
    os.close(os.open(os.fsencode(raws / "bad") + b"/no\xffutf8.dng", os.O_CREAT))
    summary = run(raws, engine)
    assert counts(summary) == (3, 0, 15)
    assert all(str(raws / "bad") in name and name in reason for name, reason in summary.failures.items())
    assert outputs(raws).keys() == {"a.dng", "trip/b.dng", "trip/c.dng"}
    failed = {event["file"]: event["reason"] for event in read_events(raws.with_name("out")) if "reason" in event}
    assert failed == summary.failures
    assert str(summary).encode()
    assert (run(raws, engine).failures) == summary.failures


def test_a_folder_that_takes_no_files_costs_those_that_belong_there_alone(raws: Path, engine: Engine) -> None:
    out = raws.with_name("out")
    out.mkdir()
    (out / "trip").write_bytes(b"a file where a folder should be")
    summary = run(raws, engine)
    assert counts(summary) == (1, 0, 2)
    assert all("cannot be written" in reason for reason in summary.failures.values())
    assert outputs(raws).keys() == {"a.dng", "trip"}
    (out / "trip").unlink()
    assert counts(run(raws, engine)) == (2, 1, 0)


@pytest.mark.parametrize("allocate", [np.empty, torch.empty])
def test_too_little_memory_costs_that_image_alone_which_is_tried_again(
    allocate: Callable[[int], Any], raws: Path, engine: Engine
) -> None:
    def read(path: Path) -> RawImage:
        if path.name == "a.dng":
            allocate(2**50)  # as the network would, with an image of this size
        return read_raw(path)

    summary = run(raws, engine, read=read)
    assert counts(summary) == (2, 0, 1)
    assert "a.dng: needs more memory than there is" in summary.failures[str(raws / "a.dng")]
    assert counts(run(raws, engine)) == (1, 2, 0)


def test_a_raw_that_took_its_worker_down_is_quarantined_and_tried_again_by_the_next_run(
    raws: Path, engine: Engine
) -> None:
    def make_all(
        jobs: Iterator[Job], total: int, staging: Path
    ) -> Generator[tuple[Job, Result, Status, float], None, None]:
        assert total == 3
        for job in jobs:
            yield job, Result({}, None, f"{job.raw}: its worker died"), "quarantined", 1.5

    out = raws.with_name("out")
    summary = Summary(out)
    with Ledger.open(out) as ledger, Events.open(out) as events:
        Archive(ledger, Product.of_denoiser(engine), summary, events).run(jobs_of([raws], out, ["dng"]), make_all)
    assert counts(summary) == (0, 0, 3)
    assert archive_status(out).quarantined == 3
    assert counts(run(raws, engine)) == (3, 0, 0)
    assert archive_status(out).quarantined == 0


CHILD = """
import resource, signal, sys
from pathlib import Path
import torch
from library.bundle import load_bundle
from library.errors import DataError
from library.inference.engine import Engine
sys.path.append({tests!r})
from test_archive import run

torch.set_num_threads(1)
engine = Engine(load_bundle({bundle!r}))
if {limit}:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
print("ready", flush=True)
try:
    print(run(Path({raws!r}), engine, formats=("dng", "exr")))
except DataError as error:
    print(error)
"""


def start(raws: Path, bundle: Path, limit: int = 0) -> subprocess.Popen[str]:
    """The same run in a process of its own, whose files may have at most `limit` bytes, as on a disk that is full."""
    code = CHILD.format(tests=str(Path(__file__).parent), bundle=str(bundle), raws=str(raws), limit=limit)
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_full_disk_costs_what_does_not_fit_and_is_made_up_for_later(
    raws: Path, small_bundle: Path, engine: Engine
) -> None:
    write_raw(raws / "large.dng", seed=5, side=400)
    with start(raws, small_bundle, limit=300_000) as child:
        report = child.communicate()[0]
    assert "3 denoised, 0 done before, 1 failed" in report
    assert "cannot be written (File too large)" in report
    assert "large.dng" in report
    assert not [name for name in outputs(raws) if "large" in name or ".tmp" in name or "staging" in name]
    assert counts(run(raws, engine, formats=("dng", "exr"))) == (1, 3, 0)


def on_a_disk(folder: Path, options: str, code: str) -> list[str]:
    """What Python code prints for which a folder is a disk of its own."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o {options} none '{folder}'"
    can = ["unshare", "-rm", "sh", "-c", mount]
    if shutil.which("unshare") is None or subprocess.run(can, capture_output=True, check=False).returncode:
        pytest.skip("needs a system where a process may mount a disk for itself (unshare -rm)")
    shell = f'{mount} && exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", shell, sys.executable, code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()


def test_a_disk_that_takes_nothing_more_ends_the_run_with_one_line(raws: Path, small_bundle: Path) -> None:
    for seed in range(10, 40):
        write_raw(raws / f"{seed}.dng", seed)
    code = CHILD.format(tests=str(Path(__file__).parent), bundle=str(small_bundle), raws=str(raws), limit=0)
    said = on_a_disk(raws.with_name("out"), "size=900k", code)
    assert len(said) == 2, said  # "ready" is the first
    assert "takes nothing more, since its disk is full or read-only: make room, and the same command goes on" in said[1]
    assert re.search(r"\(([1-9]|1\d|2\d) files were done\)", said[1])


OPENS = """
from pathlib import Path
from library.errors import DataError
from library.inference.ledger import Ledger
try:
    with Ledger.open(Path({folder!r})):
        print("opened")
except DataError as error:
    print(error)
"""


def test_a_read_only_disk_is_refused_with_one_line_before_anything_is_computed(tmp_path: Path) -> None:
    said = on_a_disk(tmp_path / "out", "ro", OPENS.format(folder=str(tmp_path / "out")))
    assert len(said) == 1, said
    assert "cannot be written (Read-only file system): choose another output folder" in said[0]


def test_whenever_the_process_is_killed_the_next_run_ends_with_the_same_files(
    raws: Path, small_bundle: Path, engine: Engine, tmp_path: Path
) -> None:
    for seed in range(10, 30):
        write_raw(raws / f"{seed}.dng", seed)
    shutil.copy(raws / "10.dng", raws / "twin of 10.dng")
    alone = tmp_path / "alone" / "raws"
    shutil.copytree(raws, alone)
    run(alone, engine, formats=("dng", "exr"))
    with start(raws, small_bundle) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(random.Random(0).uniform(0.2, 0.6))
        child.send_signal(signal.SIGKILL)
    summary = run(raws, engine, formats=("dng", "exr"))
    assert (summary.failures, summary.done + summary.skipped) == ({}, 24)
    assert outputs(raws) == outputs(alone)
    assert counts(run(raws, engine, formats=("dng", "exr"), verify=True)) == (0, 24, 0)


def test_a_file_that_a_killed_run_had_just_written_is_known_as_its_own(raws: Path, engine: Engine) -> None:
    run_and_kill_before_a_row(raws, engine, "dng")
    assert outputs(raws).keys() == {"a.dng"}
    assert counts(run(raws, engine)) == (3, 0, 0)


def test_a_worker_of_a_dead_run_can_no_longer_put_its_file_into_place(raws: Path, engine: Engine) -> None:
    make = denoising(engine)

    def compute(raw: RawImage, targets: Mapping[ArchiveFormat, Path]) -> Made:
        if raw.path.endswith("a.dng"):
            shutil.rmtree(raws.with_name("out") / ".stillgrain" / "staging")  # as the next run does
            next(iter(targets.values())).parent.parent.mkdir(parents=True)
        return make.compute(raw, targets)

    summary = run(raws, engine, make=dataclasses.replace(make, compute=compute))
    assert counts(summary) == (2, 0, 1)
    assert outputs(raws).keys() == {"trip/b.dng", "trip/c.dng"}


# --- what can be seen -------------------------------------------------------------------------------------------------


def test_the_status_counts_what_is_done_failed_and_waiting(raws: Path, engine: Engine) -> None:
    (raws / "bad.dng").write_bytes(b"II*\0 cut off")
    run(raws, engine)
    out = raws.with_name("out")
    with Ledger.open(out) as ledger:
        ledger.claim(["later.dng"])
        status = archive_status(out)  # also while somebody writes
    assert (status.done, status.failed, status.quarantined, status.waiting, status.num_raws) == (3, 1, 0, 1, 3)
    assert status.failures.keys() == {"bad.dng"}
    assert status.input_bytes == sum((raws / name).stat().st_size for name in ("a.dng", "trip/b.dng", "trip/c.dng"))
    assert status.output_bytes == sum((out / name).stat().st_size for name in ("a.dng", "trip/b.dng", "trip/c.dng"))
    assert "3 outputs of 3 raws" in str(status)
    assert str(raws / "bad.dng") in str(status)


def test_the_events_tell_the_run_and_survive_a_torn_line(raws: Path, engine: Engine) -> None:
    (raws / "bad.dng").write_bytes(b"II*\0 cut off")
    run(raws, engine)
    out = raws.with_name("out")
    said = [(event["event"], Path(event.get("file", "")).name) for event in read_events(out)]
    files = [("a.dng", "done"), ("bad.dng", "failed"), ("b.dng", "done"), ("c.dng", "done")]
    assert said[0] == ("run", "")
    assert sorted(said[1:-1]) == sorted([("started", n) for n, _ in files] + [(end, n) for n, end in files])
    assert said[-1] == ("end", "")
    times = [event["time"] for event in read_events(out)]
    assert times == sorted(times)
    with open(out / FILE, "a") as file:
        file.write('{"time": "20')
    run(raws, engine)
    assert [event["event"] for event in read_events(out)][-2:] == ["run", "end"]
