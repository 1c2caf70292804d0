from __future__ import annotations

import email.utils
import fcntl
import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from library.errors import ConfigError, DataError
from library.pairs.fetch import Fetched, Policy, fetch
from library.pairs.generate import PLANTED, generate
from library.pairs.tree import organize
from tests.dataverse import Repository, of_folder, serving

ROOT = Path(__file__).resolve().parents[3]
SIZE = 300_000
HALF = SIZE // 2
BLOCK = 1 << 16


def content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE + number)


def gt_name_of(data: bytes) -> str:
    return f"Bayer_some_scene_GT_ISO100_sha1={hashlib.sha1(data).hexdigest()}.arw"


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Repository()) as repository:
        yield repository


def fetch_all(
    repository: Repository,
    folder: Path,
    *,
    attempts: int = 3,
    timeout: float = 10,
    wait: Callable[[float], object] = lambda seconds: None,
    only: str = "*",
) -> Fetched:
    policy = Policy(attempts=attempts, timeout=timeout, wait=wait)
    return fetch("rawnind", folder, base_url=repository.url, policy=policy, only=only)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} - {".fetch.lock"}


def test_every_file_arrives_under_its_name_and_nothing_else_does(repository: Repository, tmp_path: Path):
    names = [repository.add(content(number)) for number in range(9)]
    empty = repository.add(b"")
    readme = repository.add(b"read me", "README.md")
    result = fetch_all(repository, tmp_path / "a" / "b")
    assert names_in(tmp_path / "a" / "b") == {*names, empty, readme}
    assert all((tmp_path / "a" / "b" / name).read_bytes() == data for name, data in repository.files.items())
    assert (len(result.fetched), result.exit_code) == (11, 0)
    assert result.bytes_fetched == sum(map(len, repository.files.values()))


def test_as_many_files_as_there_are_connections_come_at_once(repository: Repository, tmp_path: Path):
    repository.meeting = threading.Barrier(3)
    for number in range(6):
        repository.faults[repository.add(content(number))] = ["meets"]
    result = fetch("rawnind", tmp_path, base_url=repository.url, connections=3, policy=Policy(attempts=1, timeout=20))
    assert result.exit_code == 0, result


def test_fetching_again_asks_for_no_file(repository: Repository, tmp_path: Path):
    repository.add(content(1))
    fetch_all(repository, tmp_path)
    repository.requests.clear()
    result = fetch_all(repository, tmp_path)
    assert repository.requests == []
    assert (len(result.fetched), len(result.present)) == (0, 1)


@pytest.mark.parametrize(
    "faults",
    [
        ["breaks"],
        ["breaks", "breaks"],
        ["says less"],
        ["says more"],
        ["breaks", "ignores range"],
        ["wrong byte"],
        ["breaks", "wrong byte"],
        ["503"],
        ["500", "502"],
        ["busy 0"],
        ["redirect"],
        ["breaks", "redirect"],
    ],
    ids="-".join,
)
def test_whatever_goes_wrong_on_the_way_the_right_bytes_arrive(
    repository: Repository, tmp_path: Path, faults: list[str]
):
    hurt, other = repository.add(content(1)), repository.add(content(2))
    repository.faults[hurt] = list(faults)
    result = fetch_all(repository, tmp_path)
    assert result.exit_code == 0, result
    assert not repository.faults[hurt]
    assert names_in(tmp_path) == {hurt, other}
    assert (tmp_path / hurt).read_bytes() == content(1)


def test_a_broken_download_goes_on_where_it_broke_even_in_another_run(repository: Repository, tmp_path: Path):
    name = repository.add(content(0))
    repository.faults[name] = ["breaks"]
    first = fetch_all(repository, tmp_path, attempts=1)
    assert first.exit_code == 1
    assert not (tmp_path / name).exists()
    second = fetch_all(repository, tmp_path)
    (_, begun), (_, asked) = repository.requests
    assert begun is None
    assert asked is not None
    # What was read but not yet a whole block is lost with the connection.
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    assert HALF - BLOCK < start <= HALF
    assert first.bytes_fetched == 0
    assert second.bytes_fetched == SIZE - start
    assert (tmp_path / name).read_bytes() == content(0)


def test_a_fetch_that_was_killed_after_the_last_byte_does_not_fetch_them_again(repository: Repository, tmp_path: Path):
    name = repository.add(content(0))
    (tmp_path / f".{name}.part").write_bytes(content(0))
    assert fetch_all(repository, tmp_path).bytes_fetched == 0
    assert repository.requests == []
    assert names_in(tmp_path) == {name}


def test_a_fetch_that_is_killed_leaves_no_half_file_and_the_next_goes_on(repository: Repository, tmp_path: Path):
    name = repository.add(content(0))
    repository.faults[name] = ["stalls"]
    words = ["data", "fetch", "rawnind", "--to", str(tmp_path), "--from", repository.url]
    part = tmp_path / f".{name}.part"
    with subprocess.Popen([sys.executable, "-m", "stillgrain", *words], cwd=ROOT) as process:
        while process.poll() is None and not (part.exists() and part.stat().st_size == 2 * BLOCK):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9
    assert names_in(tmp_path) == {part.name}
    assert fetch_all(repository, tmp_path).exit_code == 0
    assert repository.requests[1] == (name, f"bytes={2 * BLOCK}-")
    assert names_in(tmp_path) == {name}
    assert (tmp_path / name).read_bytes() == content(0)


@pytest.mark.parametrize("begun", [content(1)[:HALF], content(0) + b"more", content(1)[:SIZE]])
def test_what_was_begun_with_other_bytes_is_begun_anew(repository: Repository, tmp_path: Path, begun: bytes):
    name = repository.add(content(0))
    (tmp_path / f".{name}.part").write_bytes(begun)
    assert fetch_all(repository, tmp_path).exit_code == 0
    assert (tmp_path / name).read_bytes() == content(0)


def test_a_file_whose_bytes_stay_wrong_harms_only_itself_and_never_has_its_name(repository: Repository, tmp_path: Path):
    bad, good = repository.add(content(1)), repository.add(content(2))
    repository.faults[bad] = ["wrong byte"] * 99
    result = fetch_all(repository, tmp_path, attempts=50)
    assert names_in(tmp_path) == {good}
    assert [place for place, _ in result.failed] == [bad]
    assert "checksum" in result.failed[0][1]
    assert result.exit_code == 1
    assert len(repository.requests) < 10


def test_the_sha1_in_the_name_is_believed_and_not_a_listing_that_is_wrong_of_size(
    repository: Repository, tmp_path: Path
):
    longer, shorter = repository.add(content(1)), repository.add(content(2))
    repository.listed = {longer: {"filesize": 1000}, shorter: {"filesize": 2 * SIZE}}
    assert fetch_all(repository, tmp_path).exit_code == 0
    repository.requests.clear()
    assert len(fetch_all(repository, tmp_path).present) == 2
    assert repository.requests == []


def test_a_file_without_a_sha1_in_its_name_is_checked_by_the_listing(repository: Repository, tmp_path: Path):
    name = repository.add(content(1), "notes.txt")
    repository.faults[name] = ["wrong byte"]
    assert fetch_all(repository, tmp_path).exit_code == 0
    assert (tmp_path / name).read_bytes() == content(1)
    assert len(repository.requests) == 2


def test_a_server_that_says_when_to_come_back_is_asked_again_no_sooner(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    repository.faults[name] = ["busy 120", f"busy {in_a_minute}", "busy tomorrow"]
    waits: list[float] = []
    assert fetch_all(repository, tmp_path, attempts=9, wait=waits.append).exit_code == 0
    assert waits[0] == 120
    assert 50 < waits[1] < 61
    assert waits[2] < 5


def test_waits_grow_until_the_attempts_are_used_up(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    repository.faults[name] = ["503"] * 99
    waits: list[float] = []
    result = fetch_all(repository, tmp_path, attempts=6, wait=waits.append)
    assert "503" in result.failed[0][1]
    assert len(repository.requests) == 6
    assert waits[0] <= 1
    assert 8 <= waits[-1] <= 16


def test_an_attempt_that_brings_something_new_is_no_failure(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    repository.faults[name] = ["breaks"] * 2
    assert fetch_all(repository, tmp_path, attempts=2).exit_code == 0
    assert len(repository.requests) == 3


def test_a_connection_on_which_nothing_comes_any_more_is_given_up(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    repository.faults[name] = ["stalls"]
    assert fetch_all(repository, tmp_path, timeout=0.2).exit_code == 0
    assert len(repository.requests) == 2


def test_what_is_not_public_is_asked_for_once(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    repository.faults[name] = ["403"]
    result = fetch_all(repository, tmp_path)
    assert "403" in result.failed[0][1]
    assert len(repository.requests) == 1


def test_a_pattern_of_names_fetches_a_part(repository: Repository, tmp_path: Path):
    clean = repository.add(content(1), gt_name_of(content(1)))
    repository.add(content(2))
    assert fetch_all(repository, tmp_path, only="*_GT_*").fetched == (clean,)
    assert names_in(tmp_path) == {clean}
    with pytest.raises(DataError, match="no file called"):
        fetch_all(repository, tmp_path, only="*.nothing")


def test_what_the_disk_has_no_room_for_is_not_begun(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    repository.listed[name] = {"filesize": 10**18}
    with pytest.raises(DataError, match=re.escape("1000000000.00 GB are to be fetched")):
        fetch_all(repository, tmp_path)
    assert repository.requests == []


@pytest.mark.parametrize("label", ["../escaped.arw", "/tmp/escaped.arw", ".hidden", "a/../../escaped.arw"])
def test_no_name_of_the_listing_leads_out_of_the_folder(repository: Repository, tmp_path: Path, label: str):
    strange, good = repository.add(content(1), "strange"), repository.add(content(2))
    repository.listed[strange] = {"label": label}
    folder = tmp_path / "folder"
    result = fetch_all(repository, folder)
    assert names_in(tmp_path) == {good}
    assert "out of the folder" in result.failed[0][1]


def test_folders_of_the_data_set_are_kept(repository: Repository, tmp_path: Path):
    name = repository.add(content(1))
    repository.listed[name] = {"directoryLabel": "src/Bayer"}
    assert fetch_all(repository, tmp_path).exit_code == 0
    assert (tmp_path / "src" / "Bayer" / name).read_bytes() == content(1)


def test_a_listing_that_breaks_off_is_asked_for_again(repository: Repository, tmp_path: Path):
    repository.add(content(1))
    repository.listing_faults = ["breaks", "503", "busy 0"]
    assert fetch_all(repository, tmp_path, attempts=5).exit_code == 0


def test_an_address_that_is_no_repository_is_refused_in_one_message(repository: Repository, tmp_path: Path):
    repository.listing_faults = ["a page"]
    with pytest.raises(DataError, match="no listing of a Dataverse data set"):
        fetch_all(repository, tmp_path)
    with pytest.raises(DataError, match="404"):
        fetch("rawnind", tmp_path, base_url=f"{repository.url}/elsewhere")
    with pytest.raises(DataError, match=r"versions/2\.5/files: .* 404"):
        fetch("rawnind", tmp_path, base_url=repository.url, version="2.5")
    with pytest.raises(ConfigError, match="https://HOST"):
        fetch("rawnind", tmp_path, base_url="somewhere")
    with pytest.raises(ConfigError, match="known are rawnind"):
        fetch("rawnin", tmp_path, base_url=repository.url)


def test_two_fetches_do_not_work_in_one_folder(repository: Repository, tmp_path: Path):
    repository.add(content(1))
    with (tmp_path / ".fetch.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another fetch"):
            fetch_all(repository, tmp_path)
    assert fetch_all(repository, tmp_path).exit_code == 0


def test_what_was_fetched_and_organized_is_the_tree_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    flat, tree = (generate(tmp_path / str(f), scenes=2, width=192, height=192, flat=f) for f in (True, False))
    with serving(of_folder(flat.folder)) as repository:
        for name in repository.files:
            repository.faults[name] = ["breaks", "503", "wrong byte"]
        assert fetch_all(repository, tmp_path / "fetched").exit_code == 0
    organize(tmp_path / "fetched", tmp_path / "organized")
    (tree.folder / PLANTED).unlink()
    found, meant = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "organized", tree.folder)
    )
    assert found == meant
