from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.bundle import Bundle, OutputGain, load_bundle, write_bundle
from library.errors import BundleError, ConfigError, RawFileError
from library.files.raw import RawImage, read_raw
from library.inference.archive import denoiser_settings
from library.inference.denoise import denoise_raw
from library.inference.engine import FORMS, SMALLEST_TILE, Engine, Form
from library.inference.strength import Strength
from library.inference.tile_size import resident_memory
from library.inference.verify import verify_tiling
from library.models import demosaic, nafnet, unet
from library.models.blocks.image_model import ModelConfig
from library.ops.cfa import BAYER_PHASES, mirror_pad, pack_cfa, pad_to_rggb, sample_cfa
from library.ops.demosaic import demosaic_bilinear
from library.ops.levels import normalize_levels
from library.ops.tiles import Span

MODELS = {"nafnet": nafnet.Config(width=8), "unet": unet.Config(funit=8)}


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With random weights in every layer."""
    return bundle_of(MODELS[request.param], tmp_path_factory.mktemp(request.param), noise=0.05)


def bundle_of(config: ModelConfig, folder: Path, *, noise: float) -> Bundle:
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    write_bundle(folder / "b", model, name="test", training={}, data_digest="none", metrics={"val/psnr": 1.0}, step=1)
    return load_bundle(folder / "b")


def raw_of(mosaic: np.ndarray, like: RawImage, cfa: str = "RGGB") -> RawImage:
    return replace(like, mosaic=mosaic, cfa=cfa)


@pytest.fixture
def raw(raw_dng: Path) -> RawImage:
    return read_raw(raw_dng)


@pytest.fixture
def mosaic() -> np.ndarray:
    """Odd sides, and larger than any one window used below."""
    rows, columns = np.mgrid[:331, :437]
    wave = np.sin(rows / 11) * np.cos(columns / 13) + 0.5 * (rows + columns > 400)
    noise = np.random.default_rng(0).normal(0, 200, rows.shape)
    return np.clip(512 + 5000 * (1.2 + wave) + noise, 0, 16383).astype(np.uint16)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_the_picture_is_the_networks_of_the_whole_mosaic_bit_for_bit(
    bundle: Bundle, raw: RawImage, mosaic: np.ndarray, cfa: str
) -> None:
    """Tiles, padding, levels and phase put together by the engine, against one pass written out."""
    image = raw_of(mosaic, raw, cfa)
    padded = pad_to_rggb(torch.from_numpy(mosaic), cfa)
    side = 2 * bundle.model.lattice
    padded = mirror_pad(mirror_pad(padded, 0, 0, -padded.shape[0] % side), 1, 0, -padded.shape[1] % side)
    packed = pack_cfa(normalize_levels(padded, torch.full((2, 2), 512.0), 16383.0))[None]
    with torch.no_grad():
        whole = bundle.model(packed.contiguous(memory_format=torch.channels_last))[0]
    dy, dx = divmod(cfa.index("R"), 2)
    expected = whole[:, dy : dy + 331, dx : dx + 437].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(denoise_raw(image, Engine(bundle, tile=96)), expected)


def test_verify_tiling_finds_it_exact_here(bundle: Bundle) -> None:
    report = verify_tiling(bundle)
    assert report.exact
    assert min(check.num_tiles for check in report.checks) > 1
    assert "equal bit for bit" in str(report)


def test_verify_tiling_notices_a_halo_that_is_too_small(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = bundle.model.geometry
    try:
        bundle.model.__dict__["geometry"] = geometry._replace(reach=0)
        report = verify_tiling(bundle)
    finally:
        bundle.model.__dict__["geometry"] = geometry
    assert not report.exact
    assert "samples differ" in str(report)


def test_a_rephased_mosaic_gives_the_same_picture_away_from_the_border(
    bundle: Bundle, raw: RawImage, mosaic: np.ndarray
) -> None:
    """One line less at the top and the left changes the CFA's phase, and nothing else far from there."""
    whole = denoise_raw(raw_of(mosaic, raw, "RGGB"), Engine(bundle))
    moved = denoise_raw(raw_of(mosaic[1:, 1:], raw, "BGGR"), Engine(bundle))
    # The mirrored line differs from the one that was cut, as far as the network looks.
    reach = 2 * bundle.model.halo + 2
    far = whole[1 + reach :, 1 + reach :]
    assert far.size
    np.testing.assert_allclose(moved[reach:, reach:], far, atol=2e-6)


def test_levels_follow_the_cfa_site_in_every_phase(raw: RawImage, tmp_path: Path) -> None:
    """A flat field over four black levels comes out flat: by the network that starts as the bilinear demosaic."""
    engine = Engine(bundle_of(nafnet.Config(width=4), tmp_path, noise=0.0))
    black_level = np.array([[500.0, 510.0], [520.0, 530.0]])
    flat = (np.tile(black_level, (50, 60)) + 0.25 * (16383 - np.tile(black_level, (50, 60)))).astype(np.uint16)
    for cfa in BAYER_PHASES:
        image = replace(raw_of(flat, raw, cfa), black_level=black_level)
        np.testing.assert_allclose(denoise_raw(image, engine), 0.25, atol=1e-4)


def test_at_the_start_a_nafnet_bundle_is_the_bilinear_demosaic(
    raw: RawImage, mosaic: np.ndarray, tmp_path: Path
) -> None:
    engine = Engine(bundle_of(nafnet.Config(width=4), tmp_path, noise=0.0))
    linear = normalize_levels(torch.from_numpy(mosaic), torch.full((2, 2), 512.0), 16383.0)
    expected = demosaic_bilinear(linear, cfa="GBRG").permute(1, 2, 0).numpy()
    np.testing.assert_allclose(denoise_raw(raw_of(mosaic, raw, "GBRG"), engine), expected, atol=2e-6)


def test_exposure_passes_through_at_the_start(raw: RawImage, tmp_path: Path) -> None:
    """Absolute scale: half the light, half the picture, down to five stops below."""
    engine = Engine(bundle_of(nafnet.Config(width=4), tmp_path, noise=0.0))
    for stops in range(6):
        value = 512 + round((16383 - 512) * 0.5 / 2**stops)
        picture = denoise_raw(raw_of(np.full((40, 40), value, np.uint16), raw), engine)
        np.testing.assert_allclose(picture, (value - 512) / (16383 - 512), rtol=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (2, 40), (3, 5), (33, 2)])
def test_tiny_raws_work(raw: RawImage, bundle: Bundle, size: tuple[int, int]) -> None:
    picture = denoise_raw(raw_of(np.full(size, 3000, np.uint16), raw), Engine(bundle))
    assert picture.shape == (*size, 3)
    assert np.isfinite(picture).all()


def test_bf16_is_close_and_the_engine_says_how_close(raw: RawImage, mosaic: np.ndarray, tmp_path: Path) -> None:
    bundle = bundle_of(MODELS["nafnet"], tmp_path, noise=0.05)
    image = raw_of(mosaic[:128, :160], raw)
    exact, engine = denoise_raw(image, Engine(bundle)), Engine(bundle, precision="bf16")
    found = denoise_raw(image, engine)
    assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    assert "torch in bf16 on cpu reproduces the golden tiles but for" in str(engine.opened)
    assert "lightness L*" in str(engine.opened)


def test_bf16_that_would_be_seen_is_refused(tmp_path: Path) -> None:
    """A U-Net of random weights adds up in half precision what no demosaic corrects."""
    bundle = bundle_of(MODELS["unet"], tmp_path, noise=0.05)
    with pytest.raises(
        BundleError, match=r"torch in bf16 on cpu does not .* by [\d.]+ of lightness .* \(1 is allowed\)"
    ):
        Engine(bundle, precision="bf16")


def test_a_raw_without_a_bayer_cfa_is_refused_in_words(bundle: Bundle, raw: RawImage) -> None:
    xtrans = replace(raw, cfa="GBGGRGRGRBGBGBGGRGGRGGBGBGBRGRGRGGBG", black_level=np.zeros((6, 6), np.float32))
    with pytest.raises(RawFileError, match="is no Bayer raw, and this bundle takes the four planes of one"):
        Engine(bundle).camera_rgb(xtrans)


def test_a_tile_so_small_that_rounding_would_depend_on_it_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="tile is 64, but must be at least 96"):
        Engine(bundle, tile=64)


# --- tiles as memory allows -------------------------------------------------------------------------------------------


def test_an_automatic_tile_is_the_whole_image_where_it_fits_and_changes_no_bit_where_it_does_not(
    bundle: Bundle, raw: RawImage, mosaic: np.ndarray
) -> None:
    image = raw_of(mosaic, raw)
    roomy, tight = Engine(bundle), Engine(bundle, memory=2**20)
    sides = 2 * roomy.tile_of(image), 2 * tight.tile_of(image)
    assert sides[0] >= max(mosaic.shape) > sides[1]
    assert sides[1] >= 2 * SMALLEST_TILE
    np.testing.assert_array_equal(denoise_raw(image, tight), denoise_raw(image, roomy))


def test_the_tile_of_a_raw_does_not_depend_on_the_raws_before_it(bundle: Bundle, raw: RawImage) -> None:
    """What a tile has freed stays with the process, so that less and less would seem to be left for the next."""
    rows, columns = np.mgrid[:1024, :1024]
    image = raw_of((1000 + 7 * rows + 5 * columns).astype(np.uint16), raw)
    engine = Engine(bundle, memory=resident_memory() + 2**27)
    first = engine.tile_of(image)
    assert SMALLEST_TILE < first < 512
    denoise_raw(image, engine)
    assert engine.tile_of(image) == first


def test_where_a_tile_shows_in_the_result_it_does_not_depend_on_memory(raw: RawImage, tmp_path: Path) -> None:
    bundle = bundle_of(MODELS["nafnet"], tmp_path, noise=0.05)
    tiles = {Engine(bundle, precision="bf16", memory=memory).tile_of(raw) for memory in (2**20, 2**36)}
    assert tiles == {512}


def test_an_output_is_named_by_all_that_shows_in_it_and_by_nothing_else() -> None:
    """What was the only way when archives were made first is still called the same."""
    assert denoiser_settings("fp32", "auto") == denoiser_settings("fp32", 256) == {"precision": "fp32"}
    assert denoiser_settings("bf16", "auto") == {"precision": "bf16", "tile": 512}
    others = [
        denoiser_settings("bf16", 256),
        denoiser_settings("fp32", "auto", backend="onnx"),
        denoiser_settings("fp32", 256, backend="onnx"),
        denoiser_settings("fp32", "auto", backend="openvino"),
        denoiser_settings("bf16", "auto", backend="openvino"),
        denoiser_settings("fp32", "auto", ensemble=True),
        denoiser_settings("fp32", "auto", strength=Strength(0.5, 1.0)),
        denoiser_settings("fp32", "auto", strength=Strength(1.0, 0.5)),
        denoiser_settings("fp32", "auto", strength=Strength(0.5, 0.5)),
    ]
    assert len({str(sorted(settings.items())) for settings in others}) == len(others)


# --- self-ensemble ----------------------------------------------------------------------------------------------------


def demosaic_engine(folder: Path, **settings: Any) -> Engine:
    """The bilinear demosaic, which commutes with every symmetry of the square."""
    model = demosaic.Config().build()
    write_bundle(folder / "b", model, name="bilinear", training={}, data_digest="none", metrics={}, step=0)
    return Engine(load_bundle(folder / "b"), **settings)


@pytest.mark.parametrize("cfa", BAYER_PHASES)
@pytest.mark.parametrize("sides", [(331, 437), (232, 309), (131, 250), (48, 50), (3, 2)])
def test_each_of_the_eight_forms_of_a_raw_is_registered_exactly(
    raw: RawImage, mosaic: np.ndarray, tmp_path: Path, cfa: str, sides: tuple[int, int]
) -> None:
    """An operator that commutes with mirrors and turns gives the same picture of each form, turned back; one that was
    off by a photosite, or that took one colour for another, would not."""
    black_level = np.array([[500.0, 520.0], [540.0, 560.0]], np.float32)
    image = replace(raw_of(mosaic[: sides[0], : sides[1]], raw, cfa), black_level=black_level)
    engine = demosaic_engine(tmp_path, tile=96)
    plain = torch.from_numpy(denoise_raw(image, engine)).permute(2, 0, 1)
    rows, columns = (Span(0, min(side, 192)) for side in sides)
    pictures = [engine.rectangle(Form(image, form, engine.frames(image)), rows, columns, side=192) for form in FORMS]
    assert len(set(FORMS)) == 8
    for picture in pictures:
        torch.testing.assert_close(picture, plain[:, : rows.stop, : columns.stop], rtol=0, atol=1e-6)


def test_an_ensemble_of_an_operator_that_commutes_with_mirrors_and_turns_is_that_operator(
    raw: RawImage, mosaic: np.ndarray, tmp_path: Path
) -> None:
    image = raw_of(mosaic, raw, "GBRG")
    plain = denoise_raw(image, demosaic_engine(tmp_path))
    together = denoise_raw(image, demosaic_engine(tmp_path, tile=96, ensemble=True))
    np.testing.assert_allclose(together, plain, rtol=0, atol=1e-6)


def test_an_ensemble_is_the_same_for_every_form_of_a_raw_and_no_tile_shows_in_it(
    bundle: Bundle, raw: RawImage, mosaic: np.ndarray
) -> None:
    """What one network alone is not: the mean forgets which way round the raw was."""
    image = raw_of(mosaic[:211, :235], raw, "GRBG")
    mirrored = raw_of(np.ascontiguousarray(image.mosaic[:, ::-1]), raw, "GRBG")  # of odd width: the same phase
    engine = Engine(bundle, tile=96, ensemble=True)
    picture = denoise_raw(image, engine)
    np.testing.assert_allclose(denoise_raw(mirrored, engine)[:, ::-1], picture, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(denoise_raw(image, Engine(bundle, ensemble=True)), picture)
    alone = denoise_raw(image, Engine(bundle))
    assert np.abs(denoise_raw(mirrored, Engine(bundle))[:, ::-1] - alone).max() > 1e-3


# --- brightness of an output at an arbitrary gain ---------------------------------------------------------------------


def at_gain(factor: float, gain: OutputGain, folder: Path) -> Bundle:
    """A U-Net, which has no link from its input around its head, with its head and so its output times a factor."""
    torch.manual_seed(0)
    model = unet.Config(funit=8).build()
    with torch.no_grad():
        for parameter in model.head.parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.3)  # bright enough on the whole
            parameter.mul_(factor)
    write_bundle(folder / gain, model, name="test", training={}, data_digest="none", metrics={}, step=1, gain=gain)
    return load_bundle(folder / gain)


def mosaic_mean(mosaic: np.ndarray, unclipped: np.ndarray) -> float:
    return float(mosaic[unclipped].mean(dtype=np.float64))


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_an_arbitrary_gain_becomes_that_of_the_raw_by_one_factor_for_the_image(
    raw: RawImage, mosaic: np.ndarray, tmp_path: Path, cfa: str
) -> None:
    mosaic = np.where(mosaic > 9000, np.uint16(16383), mosaic)[:231, :243]
    image = raw_of(mosaic, raw, cfa)
    own = denoise_raw(image, Engine(at_gain(5.0, "absolute", tmp_path), tile=96))
    matched = denoise_raw(image, Engine(at_gain(5.0, "arbitrary", tmp_path), tile=96))
    unclipped = mosaic < 16383
    assert 0.2 < unclipped.mean() < 0.9
    sampled = sample_cfa(torch.from_numpy(own).permute(2, 0, 1), cfa).numpy()
    linear = (mosaic - 512.0) / (16383 - 512)
    factor = mosaic_mean(linear, unclipped) / mosaic_mean(sampled, unclipped)
    assert factor < 0.9
    own_samples, matched_samples = (
        sample_cfa(torch.from_numpy(x).permute(2, 0, 1), cfa).numpy() for x in (own, matched)
    )
    # What clipped passes through, whatever the gain.
    np.testing.assert_allclose(matched_samples[unclipped], own_samples[unclipped] * factor, rtol=1e-5)
    again = sample_cfa(torch.from_numpy(matched).permute(2, 0, 1), cfa).numpy()
    assert mosaic_mean(again, unclipped) == pytest.approx(mosaic_mean(linear, unclipped), rel=1e-6)


def test_a_network_that_is_brighter_by_any_factor_gives_the_same_picture(
    raw: RawImage, mosaic: np.ndarray, tmp_path: Path
) -> None:
    image = raw_of(mosaic[:90, :120], raw, "GRBG")
    pictures = {}
    for factor in (1.0, 4.0, 0.01):
        pictures[factor] = denoise_raw(image, Engine(at_gain(factor, "arbitrary", tmp_path), tile=96))
    np.testing.assert_array_equal(pictures[4.0], pictures[1.0])  # a power of two rounds nothing
    np.testing.assert_allclose(pictures[0.01], pictures[1.0], rtol=1e-4, atol=1e-6)
    # And where the output is taken as it is, it is brighter.
    plain = [denoise_raw(image, Engine(at_gain(f, "absolute", tmp_path), tile=96)) for f in (1.0, 4.0)]
    np.testing.assert_array_equal(plain[1], 4 * plain[0])


def test_tiles_change_no_bit_of_a_picture_whose_gain_is_the_raws(
    raw: RawImage, mosaic: np.ndarray, tmp_path: Path
) -> None:
    """A gain for each tile made seams; here the shading of the raw would give each tile another."""
    shaded = (512 + (mosaic - 512.0) * np.linspace(0.05, 1, mosaic.shape[1])).astype(np.uint16)
    image = raw_of(shaded, raw, "BGGR")
    bundle = at_gain(3.0, "arbitrary", tmp_path)
    whole = denoise_raw(image, Engine(bundle, tile=512))
    for tile in (96, 128):
        np.testing.assert_array_equal(denoise_raw(image, Engine(bundle, tile=tile)), whole)


def test_photosites_that_clip_do_not_decide_the_brightness(raw: RawImage, mosaic: np.ndarray, tmp_path: Path) -> None:
    """A camera that clips below the decoder's white level says so, by CFA site."""
    bundle, mosaic = at_gain(2.0, "arbitrary", tmp_path), mosaic[:131, :153]
    camera_white = np.array([[9000.0, 8000.0], [8000.0, 7000.0]])
    image = replace(raw_of(mosaic, raw, "GRBG"), camera_white_level=camera_white)
    matched = torch.from_numpy(denoise_raw(image, Engine(bundle))).permute(2, 0, 1)
    level = np.tile(camera_white, (66, 77))[:131, :153]
    unclipped = mosaic < level
    assert 0.2 < unclipped.mean() < 0.8
    expected = mosaic_mean((mosaic - 512.0) / (16383 - 512), unclipped)
    assert mosaic_mean(sample_cfa(matched, "GRBG").numpy(), unclipped) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("level", [16383, 512, 400])
def test_a_raw_without_brightness_is_refused_by_a_bundle_that_needs_it(
    raw: RawImage, tmp_path: Path, level: int
) -> None:
    """All clipped, black, or below black."""
    image = raw_of(np.full((40, 40), level, np.uint16), raw)
    with pytest.raises(RawFileError, match="has no brightness that this bundle's output could take"):
        denoise_raw(image, Engine(at_gain(1.0, "arbitrary", tmp_path)))
    assert np.isfinite(denoise_raw(image, Engine(at_gain(1.0, "absolute", tmp_path)))).all()
