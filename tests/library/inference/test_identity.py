"""A model that changes nothing leaves a raw as it was: every sample, to the borders and through the highlights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rawpy
import tifffile
import torch
from typer.testing import CliRunner

from library.bundle import Bundle, load_bundle, write_bundle
from library.files.exr import read_exr
from library.files.raw import RawImage, read_raw
from library.inference.denoise import denoise_file, render_denoised
from library.inference.engine import Engine
from library.inference.outputs import Format, written
from library.models import demosaic
from library.ops.cfa import cfa_levels
from library.ops.levels import dither, file_levels
from stillgrain import app


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    """Plain demosaics of packed planes and of CFA planes, which leave measured samples as they are."""
    folder = tmp_path_factory.mktemp("identities")
    for channels in (4, 5):
        model = demosaic.Config(in_channels=channels).build()
        write_bundle(folder / str(channels), model, name="same", training={}, data_digest="none", metrics={}, step=0)
    return {channels: load_bundle(folder / str(channels)) for channels in (4, 5)}


def libraws_mosaic(path: Path) -> tuple[np.ndarray, int]:
    """The visible samples and the white level, as LibRaw has them."""
    with rawpy.imread(str(path)) as raw:
        return raw.raw_image_visible.copy(), raw.white_level


def clipped(raw: RawImage) -> np.ndarray:
    return raw.mosaic >= cfa_levels(torch.from_numpy(raw.clipping_level), raw.height, raw.width).numpy()


@pytest.mark.parametrize(
    "name",
    [
        "raw/canon_eos_550d_magiclantern_colorchart.dng",
        "synthetic/kiara_canon_eos-7d_iso00100.dng",
        "synthetic/lebombo_samsung_nx1_iso12800.dng",
        "synthetic/shop_pentax_k-5_iso12800.dng",
        "synthetic/alps_fujifilm_x-e2_iso06400.dng",
    ],
)
def test_a_raw_of_fourteen_bits_comes_back_bit_identical_in_libraw(
    shared_data: Path, identities: dict[int, Bundle], tmp_path: Path, name: str
) -> None:
    source, output = shared_data / name, tmp_path / "same.dng"
    engine = Engine(identities[5 if "fujifilm" in name else 4], noise=(1e-4, 1e-6))
    denoise_file(source, {"cfa-dng": output}, engine)
    (before, white_before), (after, white_after) = libraws_mosaic(source), libraws_mosaic(output)
    assert np.array_equal(after, before)
    assert white_after == white_before
    one, other = read_raw(source), read_raw(output)
    assert (other.cfa, other.orientation) == (one.cfa, one.orientation)
    assert np.array_equal(other.black_level, one.black_level)
    assert np.array_equal(clipped(other), clipped(one))


@pytest.mark.parametrize(
    "name", ["raw/canon_powershot_s40_crw_0118.crw", "raw/kodak_dc120_p003911.kdc", "raw/kodak_dc50_dc0010s.kdc"]
)
def test_a_raw_of_fewer_bits_or_without_room_below_black_comes_back_at_whole_multiples_of_its_steps(
    shared_data: Path, identities: dict[int, Bundle], tmp_path: Path, name: str
) -> None:
    """Its own steps would be too coarse for what is denoised, and its black would cut the noise."""
    source, output = shared_data / name, tmp_path / "same.dng"
    denoise_file(source, {"cfa-dng": output}, Engine(identities[4]))
    raw, again = read_raw(source), read_raw(output)
    factor = (again.white_level - again.black_level[0, 0]) / (raw.white_level - raw.black_level[0, 0])
    assert factor == int(factor) >= 1
    counts, black = again.mosaic.astype(int), int(again.black_level[0, 0])
    assert np.array_equal(counts - black, int(factor) * (raw.mosaic.astype(int) - int(raw.black_level[0, 0])))
    assert black == 1024
    assert np.array_equal(clipped(again), clipped(raw))


def test_the_command_leaves_a_real_raw_as_it_was(
    shared_data: Path, identities: dict[int, Bundle], tmp_path: Path
) -> None:
    source = shared_data / "raw/canon_eos_550d_magiclantern_colorchart.dng"
    words = ["denoise", str(source), "-o", str(tmp_path / "out"), "--bundle", identities[4].path, "-f", "cfa-dng"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    [output] = (tmp_path / "out").rglob("*.dng")
    assert np.array_equal(libraws_mosaic(output)[0], libraws_mosaic(source)[0])


@pytest.mark.parametrize("policy", ["decoder", "camera", "minimum"])
def test_every_clipped_photosite_of_a_file_is_clipped_and_the_same_in_its_mosaic(
    raw_dng: Path, small_bundle: Path, tmp_path: Path, policy: str
) -> None:
    """By a network of random weights, which would make anything of it."""
    raw = replace(read_raw(raw_dng), camera_white_level=np.array([[9000.0, 9200.0], [9400.0, 9100.0]]))
    model, training = load_bundle(small_bundle).model, {"dataset": {"white_level": policy}}
    write_bundle(tmp_path / "b", model, name="b", training=training, data_digest="none", metrics={}, step=1)
    outputs: dict[Format, Path] = {"cfa-dng": tmp_path / "out.dng", "exr": tmp_path / "out.exr"}
    written(render_denoised(raw, outputs, Engine(load_bundle(tmp_path / "b"))), outputs, raw.sha256)
    again = read_raw(tmp_path / "out.dng")
    white = 16383 if policy == "decoder" else 9000
    assert again.white_level == white
    there = clipped(raw)
    assert 0.05 < there.mean() < 0.9
    assert np.array_equal(again.mosaic[there], raw.mosaic[there])
    assert not np.array_equal(again.mosaic[~there], raw.mosaic[~there])
    if policy != "decoder":
        assert (again.mosaic[there] >= again.white_level).all()
    # And every output says which level it was.
    said = f"black 512, white {white} ({policy}; LibRaw"
    with tifffile.TiffFile(tmp_path / "out.dng") as file:
        assert said in file.pages[0].tags[34665].value["UserComment"]  # pyright: ignore
    assert read_exr(tmp_path / "out.exr").attributes["levels"].startswith(said)


# --- levels of a file -------------------------------------------------------------------------------------------------


def test_a_file_has_the_mosaics_own_levels_where_they_leave_room_or_whole_multiples_of_its_steps() -> None:
    own = np.array([[512.0, 514.0], [511.5, 520.0]])
    black, white = file_levels(own, 16383, room=1024)
    assert np.array_equal(black, own)
    assert white == 16383
    for black_level, white_level in ((np.zeros((2, 2)), 16383), (own / 16, 1023), (np.full((6, 6), 3.0), 4095)):
        black, white = file_levels(black_level, white_level, room=1024)
        factor = (white - black.min()) / (white_level - black_level.min())
        assert factor == pytest.approx(round(factor), abs=0.01)
        assert black.min() == 1024
        assert 40000 < white <= 65535
        np.testing.assert_allclose(white - black, round(factor) * (white_level - black_level), atol=1)


def test_dither_is_even_leaves_whole_numbers_and_belongs_to_the_place() -> None:
    noise = dither(200, 300, 0, 0)
    assert noise.abs().max() < 0.495
    counts = torch.arange(200.0)[:, None].expand(200, 300)
    assert torch.equal((counts + noise).round(), counts)
    for fraction in (0.1, 0.5, 0.75):
        assert float((counts + fraction + noise).round().mean() - counts.mean()) == pytest.approx(fraction, abs=0.02)
    assert torch.equal(dither(50, 60, 31, 47), noise[31:81, 47:107])
