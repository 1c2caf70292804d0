from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.inference.calibrate import calibrate_raws, measure_dark

BLACK, WHITE = 512, 16383
# Of the shared synthetic raws, as their manifest has them: a by camera and ISO.
SYNTHETIC = {
    ("EOS 7D", 100): 3.556e-5,
    ("EOS 7D", 6400): 1.325e-3,
    ("NX1", 100): 2.177e-5,
    ("NX1", 12800): 3.107e-3,
    ("K-5", 80): 1.422e-5,
    ("K-5", 12800): 1.155e-3,
}


def write_raw(path: Path, linear: np.ndarray, *, iso: float | None = 800, model: str = "One") -> Path:
    mosaic = np.clip(np.round(linear * (WHITE - BLACK) + BLACK), 0, 65535).astype(np.uint16)
    metadata = ImageMetadata(make="Stillgrain", model=model, iso=iso)
    black_level = np.full((2, 2), BLACK)
    write_cfa_dng(path, mosaic, cfa="GBRG", black_level=black_level, white_level=WHITE, metadata=metadata)
    return path


def noisy_ramp(a: float, b: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    clean = np.broadcast_to(np.linspace(0.01, 0.9, 640), (480, 640))
    return rng.poisson(clean / a) * a + rng.normal(0, np.sqrt(b), clean.shape)


def dark_frame(seed: int, *, row_sigma: float = 0.0, hot: tuple[tuple[int, int], ...] = ()) -> np.ndarray:
    rng = np.random.default_rng(seed)
    frame = rng.normal(0, 1e-3, (400, 600)) + rng.normal(0, 1, (400, 1)) * row_sigma
    for place in hot:
        frame[place] += 0.05
    return frame


def test_the_shared_raws_give_their_known_noise_or_a_reason_at_low_and_at_high_iso(shared_data: Path):
    found = calibrate_raws(sorted((shared_data / "synthetic").glob("*.dng")))
    answers = {(m.model, m.iso): m.transfer for m in found.measured if (m.model, m.iso) in SYNTHETIC}
    assert answers.keys() == SYNTHETIC.keys()
    trusted = {key: transfer.a / SYNTHETIC[key] for key, transfer in answers.items() if transfer.doubt is None}
    assert {key: ratio for key, ratio in trusted.items() if not 0.9 < ratio < 1.1} == {}
    # Each scene's strong noise is told, and of the faint one at least the scene that has even places.
    assert {("EOS 7D", 100), ("EOS 7D", 6400), ("NX1", 12800), ("K-5", 12800)} <= trusted.keys()
    assert {(m.model, p.iso) for m in found.profiles.cameras for p in m.profiles} >= trusted.keys()


def test_raws_are_told_apart_by_camera_and_iso(tmp_path: Path):
    raws = [
        write_raw(tmp_path / f"{model}{iso}.dng", noisy_ramp(1e-6 * iso, 1e-6), iso=iso, model=model)
        for model, iso in (("One", 100), ("One", 800), ("Two", 100))
    ]
    found = calibrate_raws(raws)
    assert [(m.model, m.iso, len(m.files)) for m in found.measured] == [
        ("One", 100, 1),
        ("One", 800, 1),
        ("Two", 100, 1),
    ]
    one = found.profiles.camera("Stillgrain", "One")
    assert one is not None
    assert [profile.a for profile in one.profiles] == pytest.approx([1e-4, 8e-4], rel=0.04)


def test_one_broken_raw_and_one_without_iso_harm_only_themselves(tmp_path: Path):
    good = write_raw(tmp_path / "good.dng", noisy_ramp(1e-3, 1e-6))
    nameless = write_raw(tmp_path / "nameless.dng", noisy_ramp(1e-3, 1e-6), iso=None)
    broken = tmp_path / "broken.dng"
    broken.write_bytes(good.read_bytes()[:200])
    found = calibrate_raws([broken, good, nameless])
    assert len(found.profiles.cameras) == 1
    assert found.failures.keys() == {str(broken), str(nameless)}
    assert "does not say its ISO" in found.failures[str(nameless)]


def test_row_noise_is_told_from_the_noise_of_samples():
    quiet, _ = measure_dark(dark_frame(0))
    loud, _ = measure_dark(dark_frame(0, row_sigma=3e-4))
    assert quiet < 3e-5
    assert loud == pytest.approx(3e-4, rel=0.1)


def test_hot_pixels_are_those_of_most_dark_frames(tmp_path: Path):
    hot = ((10, 20), (11, 20), (399, 599), (0, 0))
    dark = [write_raw(tmp_path / f"dark{i}.dng", dark_frame(i, row_sigma=3e-4, hot=(*hot, (50, i)))) for i in range(3)]
    found = calibrate_raws([write_raw(tmp_path / "ramp.dng", noisy_ramp(1e-3, 1e-6))], dark)
    camera = found.profiles.camera("Stillgrain", "One")
    assert camera is not None
    assert set(camera.hot_pixels) == set(hot)
    assert camera.profiles[0].row_noise == pytest.approx(3e-4, rel=0.15)


def test_a_frame_with_light_in_it_is_no_dark_frame(tmp_path: Path):
    light = write_raw(tmp_path / "light.dng", noisy_ramp(1e-3, 1e-6))
    found = calibrate_raws([light], [light])
    assert list(found.failures) == [str(light)]
    assert "no dark frame" in found.failures[str(light)]
