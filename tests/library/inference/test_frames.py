from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawpy
import torch

from library.bundle import Bundle, load_bundle, write_bundle
from library.errors import BundleError, RawFileError
from library.export.dtmodel import export_dtmodel
from library.files.exr import read_exr
from library.files.markesteijn import demosaic as demosaic_mosaic
from library.files.noise_profile import CameraProfile, IsoProfile, NoiseProfiles
from library.files.picture import read_image
from library.files.raw import RawImage, read_raw
from library.inference.denoise import denoise_file, denoise_raw
from library.inference.develop import develop_raw
from library.inference.engine import Engine
from library.inference.frames import frame_of, frame_size, noise_of
from library.inference.outputs import ENCODERS, Format, exposure_of
from library.inference.strength import Strength
from library.inference.subjects import subject_of_raw
from library.models import demosaic, nafnet, unet
from library.models.blocks.image_model import ModelConfig
from library.ops.cfa import BAYER_PHASES, XTRANS_PHASES, cfa_levels, cfa_tile, pad_mosaic, sample_cfa, shift_cfa
from library.ops.cfa_planes import pack_cfa_planes
from library.ops.develop import develop_camera_rgb
from library.ops.levels import denormalize_levels, normalize_levels, quantize
from library.ops.noise import add_poisson_gaussian
from library.ops.tiles import Span, Tile

PHASES = (*BAYER_PHASES, XTRANS_PHASES[0], XTRANS_PHASES[4])
NOISE = (1e-3, 1e-5)


def bundle_of(config: ModelConfig, folder: Path, *, noise: float = 0.05, **training: object) -> Bundle:
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    write_bundle(folder, model, name="test", training=training, data_digest="none", metrics={}, step=1)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network of CFA planes with random weights in every layer."""
    return bundle_of(nafnet.Config(in_channels=5, width=8), tmp_path_factory.mktemp("planes") / "b")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network of pictures, with random weights."""
    config = unet.Config(in_channels=3, funit=4, head="plain")
    return bundle_of(config, tmp_path_factory.mktemp("pictures") / "b")


@pytest.fixture(scope="module")
def raw(raw_dng: Path) -> RawImage:
    return read_raw(raw_dng)


def seen_by(raw: RawImage, cfa: str, height: int = 231, width: int = 243) -> RawImage:
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin(rows / 11) * np.cos(columns / 13) + 0.5 * (rows + columns > 200)
    counts = 512 + 5000 * (1.2 + wave) + np.random.default_rng(0).normal(0, 200, rows.shape)
    period = len(cfa_tile(cfa))
    mosaic = np.clip(counts, 0, 16383).astype(np.uint16)
    return replace(raw, mosaic=mosaic, cfa=cfa, black_level=np.full((period, period), 512.0, np.float32))


@pytest.mark.parametrize("cfa", PHASES)
def test_the_picture_is_that_of_the_whole_mosaic_bit_for_bit_at_any_phase(planes: Bundle, raw: RawImage, cfa: str):
    """No cropping, no other phase: windows of CFA planes against one pass written out."""
    image = seen_by(raw, cfa)
    height, width, lattice = 231, 243, planes.model.lattice
    linear = normalize_levels(torch.from_numpy(image.mosaic), torch.from_numpy(image.black_level), 16383.0)
    padded = pad_mosaic(linear, cfa, bottom=-height % lattice, right=-width % lattice)
    packed = pack_cfa_planes(padded, cfa, a=NOISE[0], b=NOISE[1])[None]
    with torch.no_grad():
        whole = planes.model(packed.contiguous(memory_format=torch.channels_last))[0, :, :height, :width]
    for tile in (96, 200):
        found = denoise_raw(image, Engine(planes, tile=tile, noise=NOISE))
        np.testing.assert_array_equal(found, whole.permute(1, 2, 0).numpy())


def test_frames_are_of_the_size_that_is_announced(planes: Bundle, pictures: Bundle, raw: RawImage):
    for cfa in PHASES:
        for height, width in ((37, 41), (40, 48)):
            image = seen_by(raw, cfa, height, width)
            for model in (planes.model, pictures.model, nafnet.Config(width=4).build()):
                if model.in_channels == 4 and cfa not in BAYER_PHASES:
                    continue
                frame = frame_of(image, model, noise=NOISE, sigma_factor=1.0)
                assert (frame.height, frame.width) == frame_size(image, model)
                assert frame.height % model.lattice == frame.width % model.lattice == 0


def test_strength_is_a_factor_of_sigma_and_none_gives_the_raw_back(planes: Bundle, raw: RawImage):
    image = seen_by(raw, XTRANS_PHASES[2], 120, 130)
    half = denoise_raw(image, Engine(planes, noise=NOISE, strength=Strength(0.5, 0.5)))
    quarter = (NOISE[0] / 4, NOISE[1] / 4)  # of the variance: half of sigma
    np.testing.assert_allclose(half, denoise_raw(image, Engine(planes, noise=quarter)), atol=1e-5)
    assert np.abs(half - denoise_raw(image, Engine(planes, noise=NOISE))).max() > 1e-4
    none = denoise_raw(image, Engine(planes, noise=NOISE, strength=Strength(0.0, 0.0)))
    sampled = sample_cfa(torch.from_numpy(none).permute(2, 0, 1), image.cfa)
    expected = normalize_levels(torch.from_numpy(image.mosaic), torch.from_numpy(image.black_level), 16383.0)
    assert torch.equal(sampled, expected)


def test_noise_is_the_files_own_or_what_the_picture_shows(raw: RawImage):
    profiled = replace(raw, noise_profile=((1e-3, 1e-5), (3e-3, -1e-5), (2e-3, 3e-5)))
    assert noise_of(profiled) == pytest.approx((2e-3, 1e-5))
    known = [IsoProfile(iso=iso, a=iso * 1e-6, b=iso**2 * 1e-11, a_error=0.01, num_files=3) for iso in (400, 1600)]
    camera = CameraProfile(make=raw.make, model=raw.model.upper(), profiles=tuple(known))
    profiles = NoiseProfiles(cameras=(camera,))
    assert noise_of(profiled, profiles) == pytest.approx(camera.at(800))
    for unknown in (replace(profiled, model="Other"), replace(profiled, iso=None)):
        assert noise_of(unknown, profiles) == noise_of(profiled)
    light = torch.linspace(0.02, 0.6, 400).expand(3, 300, 400) * torch.tensor([0.5, 1.0, 0.7])[:, None, None]
    generator = torch.Generator().manual_seed(0)
    for cfa in PHASES:
        noisy = add_poisson_gaussian(sample_cfa(light, cfa), 2e-3, 1e-5, generator=generator)
        period = len(cfa_tile(cfa))
        black_level = torch.full((period, period), 512.0)
        mosaic = quantize(denormalize_levels(noisy, black_level, 16383.0)).numpy()
        a, b = noise_of(replace(raw, mosaic=mosaic, cfa=cfa, black_level=black_level.numpy()))
        for x in (0.05, 0.3):
            assert a * x + b == pytest.approx(2e-3 * x + 1e-5, rel=0.25)
    with pytest.raises(RawFileError, match=r"too small .* give the noise"):
        noise_of(replace(raw, mosaic=raw.mosaic[:20, :20]))


@pytest.mark.parametrize("cfa", [BAYER_PHASES[1], XTRANS_PHASES[6]])
def test_a_network_of_pictures_that_changes_nothing_gives_the_demosaiced_raw(raw: RawImage, tmp_path: Path, cfa: str):
    config = demosaic.Config(in_channels=3, method="identity")
    identity = bundle_of(config, tmp_path / "identity")
    image = seen_by(raw, cfa, 60, 70)
    linear = normalize_levels(torch.from_numpy(image.mosaic), torch.from_numpy(image.black_level), 16383.0)
    expected = demosaic_mosaic(linear, cfa=cfa, as_shot_white_balance=image.as_shot_white_balance)
    found = denoise_raw(image, Engine(identity, tile=96))
    np.testing.assert_allclose(found, expected.permute(1, 2, 0).numpy(), atol=2e-6)


@pytest.mark.parametrize("cfa", [BAYER_PHASES[2], XTRANS_PHASES[8]])
def test_tiles_change_no_bit_of_what_a_network_of_pictures_gives(pictures: Bundle, raw: RawImage, cfa: str):
    image = seen_by(raw, cfa, 331, 345)
    whole = denoise_raw(image, Engine(pictures, tile=512))
    np.testing.assert_array_equal(denoise_raw(image, Engine(pictures, tile=96)), whole)


def test_what_a_bundle_cannot_take_is_refused_with_the_remedy(raw: RawImage, pictures: Bundle, small_bundle: Path):
    xtrans = seen_by(raw, XTRANS_PHASES[0], 60, 70)
    with pytest.raises(RawFileError, match=r"use a bundle of CFA planes .* or of pictures"):
        denoise_raw(xtrans, Engine(load_bundle(small_bundle)))
    with pytest.raises(RawFileError, match="colour matrix is unknown, and this bundle takes pictures"):
        denoise_raw(replace(xtrans, xyz_to_camera=None), Engine(pictures))


# --- levels -----------------------------------------------------------------------------------------------------------


def test_the_white_level_of_the_data_is_the_bundles_and_that_of_every_raw(raw: RawImage, tmp_path: Path):
    image = seen_by(raw, "GRBG", 60, 70)
    image = replace(image, camera_white_level=np.array([[13000.0, 12000.0], [12500.0, 14000.0]]))
    pictures = {}
    for policy, white in (("decoder", 16383), ("camera", 12000), ("minimum", 12000)):
        bundle = bundle_of(demosaic.Config(), tmp_path / policy, dataset={"white_level": policy})
        assert bundle.white_level == bundle.manifest["levels"]["white"] == policy
        pictures[policy] = denoise_raw(image, Engine(bundle))
        sampled = sample_cfa(torch.from_numpy(pictures[policy]).permute(2, 0, 1), "GRBG").numpy()
        np.testing.assert_allclose(sampled, (image.mosaic - 512.0) / (white - 512.0), rtol=1e-5)
    np.testing.assert_array_equal(pictures["camera"], pictures["minimum"])


@pytest.mark.parametrize("cfa", PHASES)
@pytest.mark.parametrize("ensemble", [False, True])
def test_no_network_touches_what_the_sensor_clipped(planes: Bundle, raw: RawImage, cfa: str, ensemble: bool):
    """At whatever level the camera clips, by CFA site; a network with random weights would make anything of it."""
    image = seen_by(raw, cfa, 120, 131)
    period = len(cfa_tile(cfa))
    level = 9000.0 + 400 * np.arange(period * period).reshape(period, period) / period**2
    image = replace(image, camera_white_level=level)
    clipped = image.mosaic >= cfa_levels(torch.from_numpy(level), 120, 131).numpy()
    assert 0.05 < clipped.mean() < 0.9
    picture = denoise_raw(image, Engine(planes, tile=96, noise=NOISE, ensemble=ensemble))
    sampled = sample_cfa(torch.from_numpy(picture).permute(2, 0, 1), cfa).numpy()
    expected = normalize_levels(torch.from_numpy(image.mosaic), torch.from_numpy(image.black_level), 16383.0).numpy()
    np.testing.assert_array_equal(sampled[clipped], expected[clipped])
    assert np.abs(sampled[~clipped] - expected[~clipped]).mean() > 1e-3


def test_windows_of_cfa_planes_say_the_phase_at_their_own_corner(raw: RawImage, planes: Bundle):
    """Seen through a network that passes the planes on: the demosaic of CFA planes, tile by tile."""
    plain = demosaic.Config(in_channels=5).build()
    image = seen_by(raw, XTRANS_PHASES[9], 60, 70)
    frame = frame_of(image, plain, noise=NOISE, sigma_factor=1.0)
    rows, columns = Span(7, 33), Span(5, 50)
    window = frame.window(Tile(rows, columns, rows, columns))
    expected = cfa_levels(cfa_tile(shift_cfa(image.cfa, 7, 5)), 26, 45)
    assert torch.equal(window[1:4].argmax(0), expected)


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_x_trans_file_goes_to_every_format(pictures: Bundle, shared_data: Path, tmp_path: Path):
    source = shared_data / "synthetic/alps_fujifilm_x-e2_iso06400.dng"
    formats: tuple[Format, ...] = ("dng", "cfa-dng", "exr", "tiff", "png")
    outputs = {name: tmp_path / f"out-{name}{ENCODERS[name].suffix}" for name in formats}
    denoise_file(source, outputs, Engine(pictures))
    image, again = read_raw(source), read_raw(outputs["cfa-dng"])
    assert (again.cfa, again.mosaic.shape) == (image.cfa, image.mosaic.shape)
    assert np.array_equal(again.black_level, image.black_level)
    with rawpy.imread(str(outputs["dng"])) as linear:
        assert linear.raw_image.shape[:2] == image.mosaic.shape
    assert read_exr(outputs["exr"]).rgb.shape == (*image.mosaic.shape, 3)
    for name in ("tiff", "png"):
        assert read_image(outputs[name]).rgb.shape == (*image.mosaic.shape, 3)


def test_an_x_trans_file_is_developed_in_its_own_colours(shared_data: Path):
    image = read_raw(shared_data / "synthetic/alps_fujifilm_x-e2_iso00200.dng")
    truth = torch.from_numpy(read_exr(shared_data / "synthetic/alps_gt_camera_linear.exr").rgb).permute(2, 0, 1)
    exposure_ev = exposure_of(image)
    expected = develop_camera_rgb(
        truth,
        as_shot_white_balance=image.as_shot_white_balance,
        xyz_to_camera=image.xyz_to_camera,
        exposure_ev=exposure_ev,
    )
    right, wrong = (
        float((develop_raw(replace(image, cfa=cfa), exposure_ev=exposure_ev) - expected).abs().mean())
        for cfa in (image.cfa, shift_cfa(image.cfa, 1, 0))
    )
    assert right < 0.04
    assert wrong > 3 * right


def test_what_takes_bayer_mosaics_only_says_so(raw: RawImage, planes: Bundle, tmp_path: Path):
    xtrans = seen_by(raw, XTRANS_PHASES[0], 60, 70)
    with pytest.raises(RawFileError, match="codecs of raws take Bayer ones"):
        subject_of_raw(xtrans, 16)
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    with pytest.raises(BundleError, match="takes CFA planes, which darktable does not give"):
        export_dtmodel(planes, tmp_path / "planes.dtmodel", tile=512)
