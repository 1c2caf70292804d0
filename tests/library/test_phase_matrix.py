"""Colour never shifts: whatever the CFA's phase, however the mosaic is cropped, and whichever way the camera was held,
each photosite of a raw comes back in its own colour at its own place."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from library.bundle import Bundle, load_bundle, write_bundle
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.raw import RawImage, read_raw
from library.inference.denoise import denoise_file, denoise_raw
from library.inference.engine import Engine
from library.inference.outputs import upright
from library.models import demosaic
from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES, cfa_tile, sample_cfa

COLOR = np.array([0.15, 0.45, 0.8])
"""Of the whole scene, in camera RGB: any photosite taken for another colour is far off."""
BLACK, WHITE = 1000, 15000
CROPS = tuple(itertools.product((0, 1), (0, 1), (37, 38), (44, 45)))
"""Top, left, height, width: even and odd origins and sizes."""
ORIENTATIONS = tuple(range(1, 9))
PHASES = (*BAYER_PHASES, XTRANS_PHASES[0], XTRANS_PHASES[10])
TAKEN = [(cfa, channels) for cfa in PHASES for channels in (4, 5) if channels == 5 or cfa in BAYER_PHASES]
"""Packed planes are Bayer's; `test_frames.py` has how X-Trans is refused there."""
SMALL = [
    (cfa, channels, height, width)
    for cfa, channels in TAKEN
    for height, width in ((2, 2), (2, 3), (3, 2), (5, 4), (6, 6), (7, 97))
    if min(height, width) >= len(cfa) ** 0.5
]


def level_of(cfa: str) -> np.ndarray:
    """Black by CFA site, every one another."""
    period = len(cfa_tile(cfa))
    return BLACK + 10.0 * np.arange(period * period).reshape(period, period)


def mosaic_of(cfa: str, height: int, width: int) -> np.ndarray:
    """The scene as a sensor counts it, brighter to the right and the bottom so that places can be told apart."""
    picture = torch.from_numpy(COLOR[:, None, None] * shade(height, width))
    period = len(cfa_tile(cfa))
    black = np.tile(level_of(cfa), (height // period + 1, width // period + 1))[:height, :width]
    return np.round(sample_cfa(picture, cfa).numpy() * (WHITE - black) + black).astype(np.uint16)


def shade(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return 0.5 + 0.2 * rows / 50 + 0.25 * columns / 50


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    """The plain demosaics of packed planes and of CFA planes: what a network is put around."""
    folder = tmp_path_factory.mktemp("bundles")
    for channels in (4, 5):
        model = demosaic.Config(in_channels=channels).build()
        write_bundle(folder / str(channels), model, name="plain", training={}, data_digest="none", metrics={}, step=0)
    return {channels: load_bundle(folder / str(channels)) for channels in (4, 5)}


@pytest.fixture(scope="module")
def like(raw_dng: Path) -> RawImage:
    return read_raw(raw_dng)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize(("cfa", "channels"), TAKEN)
def test_every_crop_of_every_phase_has_the_colours_of_the_scene(
    bundles: dict[int, Bundle], like: RawImage, cfa: str, channels: int, ensemble: bool
):
    engine = Engine(bundles[channels], ensemble=ensemble, noise=(1e-4, 1e-6))
    period = len(cfa_tile(cfa))
    whole, letters = mosaic_of(cfa, 40, 48), np.array(list(cfa)).reshape(period, period)
    for top, left, height, width in CROPS[:: 5 if ensemble else 1]:
        raw = replace(
            like,
            mosaic=whole[top : top + height, left : left + width],
            cfa="".join(np.roll(letters, (-top, -left), (0, 1)).flat),
            black_level=np.roll(level_of(cfa), (-top, -left), (0, 1)),
            white_level=WHITE,
        )
        picture = denoise_raw(raw, engine)
        truth = shade(40, 48)[top : top + height, left : left + width, None] * COLOR
        assert picture.shape == truth.shape
        # A border is mirrored, where the shade would go on: up to a slope of two lines.
        np.testing.assert_allclose(picture, truth, atol=0.02, err_msg=f"{cfa} {top, left, height, width}")
        np.testing.assert_allclose(picture[3:-3, 3:-3], truth[3:-3, 3:-3], atol=4e-3)


@pytest.mark.parametrize("cfa", PHASES)
def test_a_file_of_any_phase_and_orientation_goes_through_with_its_colours_and_its_turn(
    bundles: dict[int, Bundle], tmp_path: Path, cfa: str
):
    """DNG in, mosaic DNG out, and read again as any program reads it."""
    engine = Engine(bundles[5], noise=(1e-4, 1e-6))
    for orientation, (height, width) in zip(ORIENTATIONS, itertools.cycle([(37, 45), (38, 44)]), strict=False):
        source, output = tmp_path / f"{orientation}.dng", tmp_path / f"{orientation}-out.dng"
        write_cfa_dng(
            source,
            mosaic_of(cfa, height, width),
            cfa=cfa,
            black_level=level_of(cfa),
            white_level=WHITE,
            metadata=ImageMetadata(make="Stillgrain", model="Test", orientation=orientation),
        )
        raw = read_raw(source)
        denoise_file(source, {"cfa-dng": output}, engine)
        again = read_raw(output)
        assert (again.cfa, again.orientation, again.mosaic.shape) == (cfa, orientation, (height, width))
        linear, expected = (linear_of(x) for x in (again, raw))
        np.testing.assert_allclose(linear, expected, atol=1e-4)
        turned = upright(expected, orientation)
        assert turned.shape == ((width, height) if orientation >= 5 else (height, width))


def linear_of(raw: RawImage) -> np.ndarray:
    height, width = raw.mosaic.shape
    period = len(raw.black_level)
    black = np.tile(raw.black_level, (height // period + 1, width // period + 1))[:height, :width]
    return (raw.mosaic - black) / (raw.white_level - black)


@pytest.mark.parametrize(("cfa", "channels", "height", "width"), SMALL)
def test_an_image_smaller_than_a_tile_down_to_one_of_the_cfa_keeps_every_photosite(
    bundles: dict[int, Bundle], like: RawImage, cfa: str, channels: int, height: int, width: int
):
    raw = replace(like, mosaic=mosaic_of(cfa, height, width), cfa=cfa, black_level=level_of(cfa), white_level=WHITE)
    picture = denoise_raw(raw, Engine(bundles[channels], noise=(1e-4, 1e-6)))
    assert picture.shape == (height, width, 3)
    sampled = sample_cfa(torch.from_numpy(picture).permute(2, 0, 1), cfa).numpy()
    np.testing.assert_allclose(sampled, linear_of(raw), rtol=1e-6)
