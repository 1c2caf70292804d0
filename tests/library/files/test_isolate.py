from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from library.errors import ImageFileError, RawFileError, StillgrainError
from library.files.dng import write_cfa_dng
from library.files.isolate import IsolatedReader, read_raw_isolated
from library.files.metadata import ImageMetadata
from library.files.picture import read_image, write_png
from library.files.raw import RawImage, read_raw

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def reader() -> Iterator[IsolatedReader]:
    with IsolatedReader() as reader:
        yield reader


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A file whose reading never ends: a pipe that nobody writes to."""
    path = tmp_path / "endless.dng"
    os.mkfifo(path)
    return path


def assert_the_same(one: RawImage, other: RawImage) -> None:
    for field in fields(RawImage):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert type(mine) is type(theirs), field.name
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
        else:
            assert mine == theirs, field.name


def lives(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(process_id: int) -> None:
    deadline = time.monotonic() + 10
    while lives(process_id) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(process_id)


def test_a_raw_comes_out_of_the_child_as_it_does_here(reader: IsolatedReader, raw_dng: Path):
    assert_the_same(reader.read_raw(raw_dng), read_raw(raw_dng))


@pytest.mark.parametrize(
    "name",
    [
        "raw/canon_powershot_g2_crw_0304.crw",
        "synthetic/lebombo_samsung_nx1_iso12800.dng",
    ],
)
def test_so_do_the_files_of_cameras(reader: IsolatedReader, shared_data: Path, name: str):
    path = shared_data / name
    assert_the_same(reader.read_raw(path), read_raw(path))


def test_a_picture_comes_out_of_the_child_as_it_does_here(reader: IsolatedReader, tmp_path: Path):
    path = tmp_path / "picture.png"
    write_png(path, np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8))
    mine, theirs = reader.read_image(path), read_image(path)
    assert np.array_equal(mine.rgb, theirs.rgb)
    assert (mine.encoding, mine.color_space) == (theirs.encoding, theirs.color_space)
    with pytest.raises(ImageFileError, match=r"nothing\.png: cannot be read"):
        reader.read_image(tmp_path / "nothing.png")


def test_a_refusal_says_the_same_and_the_child_goes_on(reader: IsolatedReader, raw_dng: Path, tmp_path: Path):
    (tmp_path / "empty.dng").touch()
    (tmp_path / "cut.dng").write_bytes(raw_dng.read_bytes()[:9000])
    (tmp_path / "folder.dng").mkdir()
    (tmp_path / "text.dng").write_text("This is not a raw file.")
    (tmp_path / "stumbles.dng").symlink_to("/proc/self/mem")  # whose first bytes are an EIO
    (tmp_path / "headless.raw").write_bytes(bytes(8))
    (tmp_path / "headless.raw.json").symlink_to("/proc/self/mem")
    reader.read_raw(raw_dng)
    child = reader.process_id
    of_the_bytes = ("empty.dng", "cut.dng", "folder.dng", "text.dng")
    for name in (*of_the_bytes, "missing.dng", "stumbles.dng", "headless.raw"):
        with pytest.raises(RawFileError) as here:
            read_raw(tmp_path / name)
        with pytest.raises(RawFileError) as there:
            reader.read_raw(tmp_path / name)
        assert str(there.value) == str(here.value)
        assert there.value.lasting == here.value.lasting == (name in of_the_bytes)
        assert pickle.loads(pickle.dumps(there.value)).lasting == there.value.lasting
    assert reader.process_id == child


def test_a_decoder_that_hangs_is_ended_at_the_limit(raw_dng: Path, endless: Path):
    with IsolatedReader() as reader:
        reader.read_raw(raw_dng)
        hung = reader.process_id
        assert hung
        with pytest.raises(RawFileError, match=r"endless\.dng: was not decoded within 0\.2 s"):
            reader.read_raw(endless, seconds=0.2)
        assert not lives(hung)
        assert_the_same(reader.read_raw(raw_dng), read_raw(raw_dng))


def test_a_decoder_that_crashes_harms_its_file_only(raw_dng: Path, endless: Path):
    with IsolatedReader() as reader:
        reader.read_raw(raw_dng)
        crashed: list[int] = []

        def crash_twice() -> None:
            for _ in range(2):  # the child that has read a file before is not believed
                while (child := reader.process_id) in (None, *crashed):  # a dead one may hold the pipe a little longer
                    time.sleep(0.01)
                assert child
                writing = os.open(endless, os.O_WRONLY)  # returns when somebody has opened it to read
                os.kill(child, signal.SIGSEGV)
                wait_until_gone(child)
                os.close(writing)
                crashed.append(child)

        saboteur = threading.Thread(target=crash_twice)
        saboteur.start()
        with pytest.raises(RawFileError, match=r"endless\.dng: makes its decoder crash \(SIGSEGV\)") as error:
            reader.read_raw(endless, seconds=60)
        assert error.value.lasting
        saboteur.join()
        assert len(set(crashed)) == 2
        assert_the_same(reader.read_raw(raw_dng), read_raw(raw_dng))


def test_a_decoder_that_the_machine_ends_or_has_no_room_for_is_not_the_files_fault(
    raw_dng: Path, endless: Path, monkeypatch: pytest.MonkeyPatch
):
    def end(reader: IsolatedReader) -> None:
        writing = os.open(endless, os.O_WRONLY)  # returns when somebody has opened it to read
        assert reader.process_id
        os.kill(reader.process_id, signal.SIGTERM)
        wait_until_gone(reader.process_id)
        os.close(writing)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with IsolatedReader() as reader:
        saboteur = threading.Thread(target=end, args=[reader])
        saboteur.start()
        with pytest.raises(RawFileError, match=r"endless\.dng: had its decoder killed \(SIGTERM\)") as error:
            reader.read_raw(endless, seconds=60)
        saboteur.join()
        assert not error.value.lasting
        monkeypatch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(StillgrainError, match="too little of memory on this machine: give fewer workers"):
            reader.read_raw(raw_dng)


def test_a_child_that_died_meanwhile_is_replaced(raw_dng: Path):
    with IsolatedReader() as reader:
        reader.read_raw(raw_dng)
        first = reader.process_id
        assert first
        os.kill(first, signal.SIGKILL)
        assert_the_same(reader.read_raw(raw_dng), read_raw(raw_dng))
        assert reader.process_id != first


def test_memory_beyond_the_limit_is_refused_in_words(reader: IsolatedReader, tmp_path: Path):
    path = tmp_path / "large.dng"
    write_cfa_dng(
        path,
        np.zeros((4000, 4000), np.uint16),
        cfa="RGGB",
        black_level=np.zeros((2, 2)),
        white_level=1000,
        metadata=ImageMetadata(),
    )
    with pytest.raises(RawFileError, match=r"large\.dng: needs more than the 48 MiB"):
        reader.read_raw(path, memory_bytes=48 * 2**20)
    assert reader.read_raw(path).mosaic.shape == (4000, 4000)


def test_every_thread_has_a_child_of_its_own(raw_dng: Path):
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(read_raw_isolated, [raw_dng] * 6))
    for image in images:
        assert_the_same(image, read_raw(raw_dng))


def test_the_child_ends_with_its_owner(raw_dng: Path):
    reader = IsolatedReader()
    reader.read_raw(raw_dng)
    child = reader.process_id
    assert child
    del reader
    wait_until_gone(child)


def test_the_child_ends_when_its_owners_process_is_killed(raw_dng: Path):
    script = (
        "import sys; from library.files.isolate import IsolatedReader; reader = IsolatedReader();"
        "reader.read_raw(sys.argv[1]); print(reader.process_id, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(raw_dng)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        child = int(owner.stdout.readline())
        assert lives(child)
        owner.kill()
    wait_until_gone(child)
