from __future__ import annotations

import itertools
from collections.abc import Sequence

import imagecodecs
import numpy as np
import pytest
import torch

from library.inference.compressors import ladder
from library.inference.compressors.avif import Avif
from library.inference.compressors.base import (
    Compressor,
    LosslessMosaic,
    SampleCodec,
    StabilizedMosaic,
    StabilizedPicture,
    Stabilizer,
)
from library.inference.compressors.exr import ExrDwaa
from library.inference.compressors.htj2k import Htj2kLossless
from library.inference.compressors.jpeg_2000 import Jpeg2000
from library.inference.compressors.jpeg_ls import JpegLs
from library.inference.compressors.jpeg_xl import JpegXl, JpegXlLossless
from library.ops.cfa import sample_cfa
from library.ops.noise import add_poisson_gaussian
from library.ops.transfer import root_encode

LOSSLESS = (JpegXlLossless(), JpegLs(), Htj2kLossless())
FINE = (JpegXl(0.1), Jpeg2000(65), Avif(99))
KINDS = ("mosaic", "lossless", "picture")


def scene(height: int, width: int) -> np.ndarray:
    """(height, width, 3) camera RGB with shading, waves, an edge and a light brighter than white."""
    rows, columns = np.mgrid[:height, :width] / 160
    light = 0.25 + 0.15 * np.sin(30 * rows * columns) + 0.2 * (rows + columns > 1.1)
    light += np.exp(-((rows - 0.3) ** 2 + (columns - 0.4) ** 2) / 0.002)
    return np.stack([0.5 * light, light, 0.4 * light + 0.1 * rows], axis=-1).astype(np.float32)


def noisy_mosaic(height: int = 160, width: int = 176) -> np.ndarray:
    clean = sample_cfa(torch.from_numpy(scene(height, width)).permute(2, 0, 1))
    return add_poisson_gaussian(clean - 0.06, 2e-3, 1e-4, generator=torch.Generator().manual_seed(0)).numpy()


def noisy_picture(height: int = 160, width: int = 176) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.01, (height, width, 3))
    return (scene(height, width) - 0.06 + noise).astype(np.float32)


def an_image_for(kind: str) -> np.ndarray:
    if kind == "lossless":
        return counts(160, 176)
    return noisy_mosaic() if kind == "mosaic" else noisy_picture()


def counts(height: int, width: int) -> np.ndarray:
    """A mosaic in DN that has all of the 16 bits' range."""
    mosaic = (noisy_mosaic(height, width) * 15000 + 512).clip(0, 65535).astype(np.uint16)
    mosaic[0, :2], mosaic[-1, -2:] = (0, 65535), (65535, 0)
    return mosaic


def families(compressors: Sequence[Compressor]) -> list[list[Compressor]]:
    return [list(group) for _, group in itertools.groupby(compressors, key=lambda c: c.family)]


# --- without loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda codec: codec.family)
@pytest.mark.parametrize("shape", [(64, 80), (66, 70), (63, 81), (2, 2), (3, 2)])
def test_a_lossless_codec_gives_back_every_count_of_mosaics_of_any_size(codec: SampleCodec, shape: tuple[int, int]):
    mosaic = counts(*shape) if min(shape) > 3 else np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) * 9000
    compressor = LosslessMosaic(codec)
    assert compressor.lossless
    decoded = compressor.decompress(compressor.compress(mosaic))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, mosaic)


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda codec: codec.family)
def test_planes_apart_take_fewer_bytes_than_the_interleaved_mosaic(codec: SampleCodec):
    """The reason for planes: neighbours of another colour predict nothing."""
    mosaic = (noisy_mosaic(256, 256) * 15000 + 512).clip(0, 16383).astype(np.uint16)
    assert len(LosslessMosaic(codec).compress(mosaic)) < 0.95 * len(codec.encode(mosaic))


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda codec: codec.family)
@pytest.mark.parametrize("offset", [0.02, 1e-4])
def test_what_stabilising_loses_is_half_a_step_everywhere(codec: SampleCodec, offset: float):
    mosaic = noisy_mosaic()
    mosaic[0, :4] = -0.3, 3.0, 1.0, 0.0  # beyond the usual range on both sides
    assert mosaic[1:].min() < 0
    compressor = StabilizedMosaic(codec, Stabilizer(offset))
    decoded = compressor.decompress(compressor.compress(mosaic))
    ends = root_encode(torch.tensor([-0.3, 3.0]), offset)
    step = float(ends[1] - ends[0]) / 65535
    error = root_encode(torch.from_numpy(decoded), offset) - root_encode(torch.from_numpy(mosaic), offset)
    assert float(error.abs().max()) < 0.51 * step + 1e-6  # float32 has steps of its own
    assert not compressor.lossless


def test_an_image_within_the_usual_range_is_quantised_alike_whatever_else_it_holds():
    picture = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    alone = Stabilizer().quantize(picture, 16)
    beside = Stabilizer().quantize(np.concatenate([picture, picture + 0.2], axis=1), 16)
    assert alone[0] == beside[0]
    np.testing.assert_array_equal(alone[1], beside[1][:, :1])


@pytest.mark.parametrize("bits", [12, 16])
def test_samples_span_the_codecs_bits_and_no_more(bits: int):
    ramp = np.linspace(-2, 5, 1000, dtype=np.float32)
    _, samples = Stabilizer().quantize(ramp, bits)
    assert samples.dtype == np.uint16
    assert (samples[0], samples[-1]) == (0, 2**bits - 1)
    assert (np.diff(samples.astype(int)) >= 0).all()


def test_noise_that_grows_with_light_is_equal_in_samples():
    """Variance 2e-3 x + 1e-5, and so the offset 0.005."""
    generator = torch.Generator().manual_seed(0)
    spread = []
    for level in (0.05, 0.2, 0.8):
        noisy = add_poisson_gaussian(torch.full((20000,), level), 2e-3, 1e-5, generator=generator)
        spread.append(Stabilizer(offset=0.005).quantize(noisy.numpy(), 16)[1].astype(float).std())
    np.testing.assert_allclose(spread, spread[0], rtol=0.06)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float):
    picture = np.full((8, 8, 3), bad, np.float32)
    for compressor in (StabilizedPicture(JpegXl(1.0)), ExrDwaa(45)):
        with pytest.raises(ValueError, match="the image holds NaN or"):
            compressor.compress(picture)


# --- with loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mosaic", "picture"])
def test_along_every_ladder_more_bytes_mean_less_error(kind: str):
    image = noisy_mosaic() if kind == "mosaic" else noisy_picture()
    for family in families(ladder(kind)):
        contents = [compressor.compress(image) for compressor in family]
        decoded = [c.decompress(content) for c, content in zip(family, contents, strict=True)]
        assert all(d.shape == image.shape and d.dtype == np.float32 for d in decoded)
        encoded = [root_encode(torch.from_numpy(d)) for d in (image, *decoded)]
        errors = [float((e - encoded[0]).square().mean()) for e in encoded[1:]]
        assert (np.diff([len(content) for content in contents]) > 0).all(), family[0].family
        assert (np.diff(errors) < 0).all(), (family[0].family, errors)


@pytest.mark.parametrize("kind", ["mosaic", "picture"])
def test_ladders_of_codecs_for_pictures_reach_from_a_tenth_of_a_bit_to_more_than_two(kind: str):
    image = noisy_mosaic() if kind == "mosaic" else noisy_picture()
    photosites = image.shape[0] * image.shape[1]
    for family in families(ladder(kind)):
        if family[0].family != "EXR half DWAA":  # made for film: its fewest bytes are many
            bpp = [8 * len(compressor.compress(image)) / photosites for compressor in (family[0], family[-1])]
            assert bpp[0] < 0.25, family[0].family
            assert bpp[1] > 2, family[0].family


@pytest.mark.parametrize("codec", FINE, ids=lambda codec: codec.family)
def test_light_below_black_and_above_white_survives(codec: SampleCodec):
    smooth = np.linspace(-0.3, 2.0, 96 * 96, dtype=np.float32).reshape(96, 96)
    for compressor, image in (
        (StabilizedMosaic(codec), smooth),
        (StabilizedPicture(codec), np.stack([smooth, smooth / 2, smooth * 0.7], axis=-1)),
    ):
        decoded = compressor.decompress(compressor.compress(image))
        assert np.abs(decoded - image).max() < 0.02
        assert decoded.min() < -0.28
        assert decoded.max() > 1.98


def test_exr_keeps_light_below_black_and_above_white():
    smooth = np.linspace(-0.3, 2.0, 96 * 96, dtype=np.float32).reshape(96, 96)
    image = np.stack([smooth, smooth / 2, smooth * 0.7], axis=-1)
    decoded = ExrDwaa(0).decompress(ExrDwaa(0).compress(image))
    np.testing.assert_allclose(decoded, image, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize("shape", [(34, 38), (66, 50), (33, 47), (161, 35)])
@pytest.mark.parametrize("codec", FINE, ids=lambda codec: codec.family)
def test_shapes_survive_also_where_planes_or_the_mosaic_have_odd_sides(codec: SampleCodec, shape: tuple[int, int]):
    mosaic, picture = noisy_mosaic(*shape), noisy_picture(*shape)
    planes, pixels = StabilizedMosaic(codec), StabilizedPicture(codec)
    np.testing.assert_allclose(planes.decompress(planes.compress(mosaic)), mosaic, atol=0.08)
    np.testing.assert_allclose(pixels.decompress(pixels.compress(picture)), picture, atol=0.08)


def test_each_plane_comes_back_to_its_own_sites():
    mosaic = np.tile(np.array([[0.1, 0.4], [0.5, 0.8]], np.float32), (24, 40))
    compressor = StabilizedMosaic(JpegXl(0.5))
    decoded = compressor.decompress(compressor.compress(mosaic))
    np.testing.assert_allclose([decoded[y::2, x::2].mean() for y in (0, 1) for x in (0, 1)], [0.1, 0.4, 0.5, 0.8], 0.02)


# --- for tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_depend_on_the_image_alone_and_decode_by_themselves(kind: str):
    image = an_image_for(kind)
    for family, again in zip(families(ladder(kind)), families(ladder(kind)), strict=True):
        content = family[-1].compress(image)
        assert again[-1].compress(image.copy()) == content
        np.testing.assert_array_equal(again[-1].decompress(content), family[-1].decompress(content))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_unique_and_families_of_lossy_codecs_have_ten_settings(kind: str):
    compressors: Sequence[Compressor] = ladder(kind)
    assert len({c.name for c in compressors}) == len(compressors)
    assert len({c.family for c in compressors}) == len(families(compressors))
    for family in families(compressors):
        assert len(family) == (1 if kind == "lossless" else 10)
        assert all(c.name.startswith(c.family) and c.lossless == (kind == "lossless") for c in family)


def test_no_name_is_used_for_two_kinds():
    names = [c.name for kind in KINDS for c in ladder(kind)]
    assert len(set(names)) == len(names)


def test_the_stabiliser_that_is_given_is_used():
    mosaic = noisy_mosaic()
    first, other = (ladder("mosaic", Stabilizer(offset))[0].compress(mosaic) for offset in (0.02, 0.001))
    assert first != other


@pytest.mark.parametrize("kind", KINDS)
def test_all_can_run_here(kind: str):
    assert [c.available() for c in ladder(kind)] == [None] * len(ladder(kind))


def test_a_build_without_an_encoder_is_told_from_one_with_it(monkeypatch: pytest.MonkeyPatch):
    class Missing:
        available = False

    monkeypatch.setattr(imagecodecs, "AVIF", Missing)
    reasons = {c.family: c.available() for c in ladder("mosaic")}
    assert reasons.pop("AVIF 12-bit planes") == (
        f"imagecodecs {imagecodecs.__version__} is built without AVIF here: install its wheel from PyPI"
    )
    assert set(reasons.values()) == {None}


def test_gray_avif_loses_something_where_it_is_asked_to():
    """imagecodecs codes a gray image without loss at any quality: a curve was one point eight times."""
    samples = (noisy_mosaic() * 3000 + 300).clip(0, 4095).astype(np.uint16)
    coarse, fine = (len(Avif(quality).encode(samples)) for quality in (10, 90))
    assert coarse < fine / 5
