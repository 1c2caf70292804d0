from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from library.datasets.sensors import ProfiledSensor
from library.errors import DataError
from library.files.noise_profile import (
    CameraProfile,
    IsoProfile,
    NoiseProfiles,
    read_noise_profiles,
    write_noise_profiles,
)


def profile(iso: float, a: float, b: float) -> IsoProfile:
    return IsoProfile(iso=iso, a=a, b=b, a_error=0.02, num_files=3)


CAMERA = CameraProfile(
    make="Stillgrain",
    model="One",
    profiles=(profile(100, 1e-4, 1e-6), profile(400, 4e-4, 7e-6)),
    hot_pixels=((3, 5), (7, 0)),
)
PROFILES = NoiseProfiles(cameras=(CAMERA,))


def test_what_is_written_is_read(tmp_path: Path):
    write_noise_profiles(tmp_path / "noise.json", PROFILES)
    assert read_noise_profiles(tmp_path / "noise.json") == PROFILES


def test_a_camera_is_found_whatever_the_case_of_its_name():
    assert PROFILES.camera("STILLGRAIN", "one") == CAMERA
    assert PROFILES.camera("Stillgrain", "Two") is None


@pytest.mark.parametrize(
    ("iso", "a", "b"),
    [(100, 1e-4, 1e-6), (400, 4e-4, 7e-6), (250, 2.5e-4, 4e-6), (800, 8e-4, 2.8e-5), (50, 5e-5, 2.5e-7)],
)
def test_noise_at_any_iso_lies_on_the_line_between_or_grows_with_the_gain(iso: float, a: float, b: float):
    assert CAMERA.at(iso) == pytest.approx((a, b))


def test_synthetic_noise_is_drawn_from_a_profile_as_it_is(tmp_path: Path):
    write_noise_profiles(tmp_path / "noise.json", PROFILES)
    sensor = ProfiledSensor(table=str(tmp_path / "noise.json"), iso=(100, 400))
    drawn = {(s.a, s.b) for rng in [np.random.default_rng(0)] for s in (sensor.draw(rng) for _ in range(20))}
    assert drawn == {(1e-4, 1e-6), (4e-4, 7e-6)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "cameras: Field required"),
        ('{"format": "another", "cameras": []}', "format: Input should be 'stillgrain noise profile'"),
        ("not json", "Invalid JSON"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_key(tmp_path: Path, text: str, why: str):
    (tmp_path / "noise.json").write_text(text)
    with pytest.raises(DataError, match=why) as refused:
        read_noise_profiles(tmp_path / "noise.json")
    assert "noise.json" in str(refused.value)
    assert "stillgrain calibrate" in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"noise\.json: cannot be read \(No such file or directory\)"):
        read_noise_profiles(tmp_path / "noise.json")
