from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from library.errors import DataError
from library.inference.ledger import Entry, Known, Ledger, output_key

ROOT = Path(__file__).resolve().parents[3]

DONE = Entry(
    input_path="2024/ä.dng",
    input_sha256="a" * 64,
    input_size=1234,
    input_mtime_ns=1_700_000_000_123_456_789,
    bundle_digest="b" * 64,
    parameters={"format": "dng", "strength": 1.0},
    engine="0.1.0",
    output_path="2024/ä.denoised.dng",
    output_sha256="c" * 64,
    output_size=6,
    output_mtime_ns=1_700_000_001_000_000_000,
    status="done",
    seconds=2.5,
    error=None,
)
FAILED = Entry(
    input_path="/elsewhere/broken.cr2",
    bundle_digest="b" * 64,
    parameters={"format": "dng", "strength": 1.0},
    engine="0.1.0",
    output_path="broken.denoised.dng",
    status="failed",
    seconds=0.1,
    error="broken.cr2: cut short: copy it from the card again",
)


def ledger_file(folder: Path) -> Path:
    return folder / ".stillgrain" / "ledger.sqlite"


def test_what_was_recorded_is_there_after_reopening(tmp_path: Path):
    with Ledger.open(tmp_path) as ledger:
        ledger.record(FAILED)
        ledger.record(DONE)
        assert list(ledger.rows()) == [DONE, FAILED]
    with Ledger.open(tmp_path) as ledger:
        assert list(ledger.rows()) == [DONE, FAILED]
        assert ledger.counts() == {"done": 1, "failed": 1, "quarantined": 0}


def test_a_key_depends_on_all_that_determines_the_output_and_on_nothing_else():
    key = output_key("a", "b", {"x": 1, "y": {"z": [1.5, True]}}, "1")
    assert key == output_key("a", "b", {"y": {"z": [1.5, True]}, "x": 1}, "1")
    assert len(key) == 64
    others = {
        output_key("c", "b", {"x": 1, "y": {"z": [1.5, True]}}, "1"),
        output_key("a", "c", {"x": 1, "y": {"z": [1.5, True]}}, "1"),
        output_key("a", "b", {"x": 2, "y": {"z": [1.5, True]}}, "1"),
        output_key("a", "b", {"x": 1, "y": {"z": [1.5, False]}}, "1"),
        output_key("a", "b", {"x": 1, "y": {"z": [1.5, True]}}, "2"),
        output_key("ab", "", {"x": 1, "y": {"z": [1.5, True]}}, "1"),
    }
    assert len(others | {key}) == 7
    with pytest.raises(ValueError, match="not JSON compliant"):
        output_key("a", "b", {"x": float("nan")}, "1")


def test_a_row_gives_way_to_a_newer_one_of_the_same_output_and_equal_inputs_have_each_their_own(tmp_path: Path):
    other = replace(DONE, bundle_digest="d" * 64)
    twin = replace(DONE, input_path="copy/ä.dng", output_path="copy/ä.denoised.dng")
    with Ledger.open(tmp_path) as ledger:
        ledger.record(DONE, twin)
        ledger.record(other)
        assert list(ledger.rows()) == [other, twin]
        keys = ledger.keys()
    assert {row.key for row in keys.values()} == {other.key, twin.key}
    assert twin.key == DONE.key != other.key
    assert keys[DONE.output_path] == (other.key, "done", 6, other.output_mtime_ns, "c" * 64, None)


def test_what_is_known_of_a_raw_comes_with_its_outputs_or_not_at_all(tmp_path: Path):
    known = Known(1234, 5, "a" * 64, "e" * 64, {"iso": "800", "model": "ä"})
    with Ledger.open(tmp_path) as ledger:
        ledger.record(DONE, known={"/raws/ä.dng": known})
        ledger.remember([("/raws/b.dng", Known(7, 8))])
        with pytest.raises(sqlite3.IntegrityError):
            ledger.record(FAILED, replace(FAILED, bundle_digest=None), known={"/raws/c.dng": known})  # type: ignore[arg-type]
        assert ledger.counts() == {"done": 1, "failed": 0, "quarantined": 0}
    with Ledger.open(tmp_path) as ledger:
        assert ledger.inputs() == {"/raws/ä.dng": known, "/raws/b.dng": Known(7, 8)}


def test_what_a_run_was_about_to_write_is_known_as_its_own(tmp_path: Path):
    with Ledger.open(tmp_path) as ledger:
        ledger.record(DONE)
        ledger.claim(["b.dng", "c/d.dng", "b.dng"])
    with Ledger.open(tmp_path) as ledger:
        assert ledger.claims() == {DONE.output_path, "b.dng", "c/d.dng"}


def test_a_path_is_not_its_own_where_nothing_was_made_and_nothing_lies(tmp_path: Path):
    other = replace(FAILED, output_path="other.dng")
    with Ledger.open(tmp_path) as ledger:
        ledger.claim([DONE.output_path, FAILED.output_path, other.output_path])
        ledger.record(DONE, FAILED, other, vacant=[FAILED.output_path])
        assert ledger.claims() == {DONE.output_path, other.output_path}


def test_a_ledger_can_be_read_while_it_is_written_and_afterwards(tmp_path: Path):
    with pytest.raises(DataError, match="holds no ledger"), Ledger.read(tmp_path):
        pass
    with Ledger.open(tmp_path) as ledger:
        ledger.record(DONE)
        with Ledger.read(tmp_path) as reader:
            assert list(reader.rows()) == [DONE]
            ledger.record(FAILED)
            assert list(reader.rows()) == [DONE, FAILED]
    with Ledger.read(tmp_path) as reader:
        assert list(reader.rows()) == [DONE, FAILED]
        with pytest.raises(DataError, match="cannot be used"):
            reader.record(DONE)


WRITER = """
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from library.inference.ledger import Ledger
from test_ledger import DONE

with Ledger.open(Path(sys.argv[1])) as ledger:
    for n in count():
        ledger.record(replace(DONE, input_path=f"{n:06}.dng", output_path=f"{n:06}.dng"))
        print(n, flush=True)
"""


def start_writer(folder: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("num_rows", [1, 20, 150])
def test_a_writer_killed_in_mid_stream_leaves_every_row_it_recorded(tmp_path: Path, num_rows: int):
    with start_writer(tmp_path) as writer:
        assert writer.stdout is not None
        last = [int(writer.stdout.readline()) for _ in range(num_rows)][-1]
        writer.send_signal(signal.SIGKILL)
        last = max([last, *map(int, writer.stdout.read().split())])

    with Ledger.open(tmp_path) as ledger:
        numbers = [int(Path(entry.output_path).stem) for entry in ledger.rows()]
        assert numbers[0] == 0
        assert all(b == a + 1 for a, b in pairwise(numbers))
        assert numbers[-1] in (last, last + 1)  # it may have died between the record and the word of it
        ledger.record(DONE)


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path: Path):
    with start_writer(tmp_path) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with (
            pytest.raises(DataError, match=rf"{tmp_path}: process {writer.pid} on .* is writing here: wait"),
            Ledger.open(tmp_path),
        ):
            pass
        writer.kill()
    with Ledger.open(tmp_path), pytest.raises(DataError, match=f"process {os.getpid()} on"), Ledger.open(tmp_path):
        pass
    with Ledger.open(tmp_path) as ledger:
        assert ledger.counts()["done"] > 0


def test_a_file_that_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path):
    file = ledger_file(tmp_path)
    file.parent.mkdir()
    file.write_bytes(b"not a database " * 100)
    with pytest.raises(DataError, match=r"ledger\.sqlite: is damaged .*move it away"), Ledger.open(tmp_path):
        pass
    assert file.read_bytes() == b"not a database " * 100


def test_a_ledger_with_a_torn_page_is_refused(tmp_path: Path):
    with Ledger.open(tmp_path) as ledger:
        for n in range(100):
            ledger.record(replace(DONE, output_path=f"{n}.dng"))
    with ledger_file(tmp_path).open("r+b") as file:
        file.seek(3 * 4096)
        file.write(bytes(4096))
    with pytest.raises(DataError, match=r"ledger\.sqlite: is damaged"), Ledger.open(tmp_path):
        pass


def test_a_ledger_of_another_schema_is_refused(tmp_path: Path):
    with Ledger.open(tmp_path) as ledger:
        ledger.record(DONE)
    connection = sqlite3.connect(ledger_file(tmp_path))
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(DataError, match=r"has schema 7, and .* knows schema 2: use"), Ledger.open(tmp_path):
        pass


def test_a_ledger_whose_maker_died_before_the_tables_is_made_anew(tmp_path: Path):
    ledger_file(tmp_path).parent.mkdir()
    ledger_file(tmp_path).touch()
    with Ledger.open(tmp_path) as ledger:
        ledger.record(DONE)
        assert list(ledger.rows()) == [DONE]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "out").write_bytes(b"a file")
    with (
        pytest.raises(DataError, match=r"cannot be written .*choose another output folder"),
        Ledger.open(tmp_path / "out"),
    ):
        pass
