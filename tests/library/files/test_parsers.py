from __future__ import annotations

import logging
from pathlib import Path

import pytest

from library.files.dng_tags import read_dng_tags
from library.files.exif import read_mosaic_tags, read_tags
from library.files.linear_dng import is_linear_dng
from library.files.parsers import metadata_or_nothing
from library.files.tags import all_tags

DAMAGED = [
    b"",
    b"II*\0",
    b"II*\0\xff\xff\xff\xff",
    b"II*\0\x08\0\0\0\x05",
    b"MM\0*\0\0\0\x08\0\x05",
    b"v/1\x01\x02\0\0\0",
    b"FUJIFILM" + b"\xff" * 99,
    b"II\x1a\0\0\0HEAPCCDR",
    b"\x89PNG\r\n\x1a\n",
]


@pytest.mark.parametrize("data", DAMAGED)
def test_damage_loses_metadata_and_says_no_word(
    data: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for logger in (None, "exifread", "tifffile"):  # as where no logging is configured
        monkeypatch.setattr(logging.getLogger(logger), "handlers", [])
    path = tmp_path / "damaged"
    path.write_bytes(data)
    assert all_tags(path) == {}
    assert read_tags(data) == {}
    assert read_mosaic_tags(data, [258]) == {}
    assert read_dng_tags(data) == {}
    assert not is_linear_dng(path)
    assert capfd.readouterr() == ("", "")


def test_a_program_that_logs_still_hears_of_damage(caplog: pytest.LogCaptureFixture):
    with metadata_or_nothing():
        logging.getLogger("tifffile").error("a directory is damaged")
    assert caplog.messages == ["a directory is damaged"]


def test_whoever_stops_the_program_is_obeyed():
    with pytest.raises(KeyboardInterrupt), metadata_or_nothing():
        raise KeyboardInterrupt
