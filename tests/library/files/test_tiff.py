from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from library.errors import ImageFileError
from library.files.tiff import Tag, TagType, write_tiff

MINIMAL = [Tag(262, TagType.SHORT, 1)]


@pytest.mark.parametrize("rows_per_strip", [None, 1, 3, 64])
def test_samples_come_back_however_they_are_cut_into_strips_and_blocks(tmp_path: Path, rows_per_strip: int | None):
    image = np.random.default_rng(0).integers(0, 65536, (7, 5, 3)).astype(np.uint16)
    blocks = (image[top : top + 2] for top in range(0, 7, 2))
    path = tmp_path / "image.tif"
    write_tiff(
        path,
        blocks,
        height=7,
        width=5,
        channels=3,
        tags=[Tag(262, TagType.SHORT, 2)],
        rows_per_strip=rows_per_strip,
    )
    assert np.array_equal(tifffile.imread(path), image)


def test_every_type_of_tag_is_read_back_by_another_library(tmp_path: Path):
    tags = [
        Tag(305, TagType.ASCII, "Stillgrain, é"),
        Tag(700, TagType.BYTE, b"<xmp/>"),
        Tag(34675, TagType.UNDEFINED, b"odd"),
        Tag(50717, TagType.LONG, [1, 2**32 - 1]),
        Tag(50718, TagType.RATIONAL, [1.5, 1 / 3]),
        Tag(50721, TagType.SRATIONAL, [-0.7034, 2]),
        Tag(51041, TagType.DOUBLE, [1e-9, -2.5]),
    ]
    path = tmp_path / "image.tif"
    exif = [Tag(33434, TagType.RATIONAL, 1 / 160), Tag(36867, TagType.ASCII, "2024:02:03 04:05:06")]
    write_tiff(path, [np.zeros((2, 2), np.uint16)], height=2, width=2, channels=1, tags=[*MINIMAL, *tags], exif=exif)
    with tifffile.TiffFile(path) as file:
        read = {tag.code: tag.value for tag in file.pages.first.tags}
        assert all(tag.valueoffset % 2 == 0 for tag in file.pages.first.tags)
    assert read[305] == "Stillgrain, é"
    assert read[700] == b"<xmp/>"
    assert read[34675] == b"odd"
    assert read[50717] == (1, 2**32 - 1)
    assert read[50718] == (3, 2, 1, 3)
    assert read[50721] == (-3517, 5000, 2, 1)
    assert read[51041] == (1e-9, -2.5)
    assert read[34665]["ExposureTime"] == (1, 160)
    assert read[34665]["DateTimeOriginal"] == "2024:02:03 04:05:06"


@given(st.floats(-2e9, 2e9))
def test_a_fraction_is_near_its_number_and_fits_in_32_bits(number: float):
    _, data = Tag(1, TagType.SRATIONAL, number).encoded()
    numerator, denominator = np.frombuffer(data, "<i4")
    assert denominator > 0
    assert abs(numerator / denominator - number) <= max(0.5e-6, abs(number) * 1e-9)


def test_more_than_four_gigabytes_are_refused_before_a_byte_is_written(tmp_path: Path):
    path = tmp_path / "huge.tif"
    with pytest.raises(ImageFileError, match="4 GiB"):
        write_tiff(path, [], height=40_000, width=60_000, channels=1, tags=MINIMAL)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_of_rows_leaves_no_file(tmp_path: Path):
    with pytest.raises(AssertionError):
        write_tiff(tmp_path / "short.tif", [np.zeros((2, 2), np.uint16)], height=3, width=2, channels=1, tags=MINIMAL)
    assert list(tmp_path.iterdir()) == []
