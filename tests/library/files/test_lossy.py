from __future__ import annotations

from pathlib import Path

import exifread
import imagecodecs
import numpy as np
import pytest
from PIL import Image

from library.files.lossy import write_jpeg, write_jxl
from library.files.metadata import ImageMetadata
from library.files.picture import read_image, srgb_profile

METADATA = ImageMetadata(
    make="Stillgrain", model="Test", iso=800.0, exposure_time=0.01, timestamp="2026-01-02T03:04:05"
)


@pytest.fixture(scope="module")
def srgb() -> np.ndarray:
    """(90, 120, 3) uint16, smooth."""
    rows, columns = np.mgrid[:90, :120] / 120
    return (65535 * np.stack([rows, columns, (rows + columns) / 2], axis=-1)).astype(np.uint16)


def test_a_jpeg_holds_the_picture_its_colour_space_and_where_it_comes_from(srgb: np.ndarray, tmp_path: Path) -> None:
    write_jpeg(tmp_path / "x.jpg", (srgb >> 8).astype(np.uint8), METADATA)
    assert np.abs(read_image(tmp_path / "x.jpg").rgb - srgb / 65535).max() < 0.03
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.info["icc_profile"] == srgb_profile()
        assert (image.getexif()[271], image.getexif().get_ifd(34665)[34855]) == ("Stillgrain", 800)


def test_a_jpeg_xl_holds_the_picture_and_where_it_comes_from(srgb: np.ndarray, tmp_path: Path) -> None:
    write_jxl(tmp_path / "x.jxl", srgb, METADATA)
    image = read_image(tmp_path / "x.jxl")
    assert image.encoding == "srgb"
    assert np.abs(image.rgb - srgb / 65535).max() < 0.03
    assert imagecodecs.jpegxl_decode((tmp_path / "x.jxl").read_bytes()).dtype == np.uint16
    with (tmp_path / "x.jxl").open("rb") as file:
        tags = exifread.process_file(file)
    assert {name: str(tags[name]) for name in ("Image Make", "EXIF ISOSpeedRatings", "EXIF DateTimeOriginal")} == {
        "Image Make": "Stillgrain",
        "EXIF ISOSpeedRatings": "800",
        "EXIF DateTimeOriginal": "2026:01:02 03:04:05",
    }


def test_more_quality_is_more_bytes_and_the_same_picture_the_same_bytes(srgb: np.ndarray, tmp_path: Path) -> None:
    noisy = srgb // 2 + np.random.default_rng(0).integers(0, 20_000, srgb.shape, np.uint16)
    sizes = []
    for number, quality in enumerate((50, 90, 91, 99)):
        write_jpeg(tmp_path / f"{number}.jpg", (noisy >> 8).astype(np.uint8), METADATA, quality=quality)
        sizes.append((tmp_path / f"{number}.jpg").stat().st_size)
    for number, distance in enumerate((8.0, 1.0, 0.1)):
        write_jxl(tmp_path / f"{number}.jxl", noisy, METADATA, distance=distance)
        sizes.append((tmp_path / f"{number}.jxl").stat().st_size)
    assert sizes[:4] == sorted(sizes[:4])
    assert sizes[4:] == sorted(sizes[4:])
    write_jxl(tmp_path / "again.jxl", noisy, METADATA, distance=1.0)
    assert (tmp_path / "again.jxl").read_bytes() == (tmp_path / "1.jxl").read_bytes()
