"""Compressing from the command line: encode in a process of its own; decode and info in another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rawpy
import torch
from PIL import Image

from library.codec_bundle import write_codec_bundle
from library.codecs import rawcodec
from library.files.raw import read_raw
from tests.command import assert_refused, stillgrain, stillgrain_alone


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec without training: enough for words, files and exit codes."""
    torch.manual_seed(0)
    model = rawcodec.Config(width=8, latents=8, hyper_latents=4, encoder_blocks=1, decoder_blocks=1).build()
    folder = tmp_path_factory.mktemp("codec") / "bundle"
    write_codec_bundle(folder, model, name="plain", training={}, data_digest="none", metrics={}, step=0)
    return folder


@pytest.fixture(scope="module")
def coded(bundle: Path, raw_dng: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coded") / "photo.sgr"
    words = ("--quality", "40", "--tile", "64", "--thumbnail", "--verify")
    result = stillgrain_alone("encode", raw_dng, "-o", path, "--bundle", bundle, *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{path}: {path.stat().st_size:,} bytes, quality 40, ")
    assert "bpp" in result.stdout
    assert result.stdout.endswith(" over the model's estimate), verified\n")
    return path


@pytest.fixture(scope="module")
def holed(coded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with a byte changed in the middle of its tiles."""
    sizes = json.loads(stillgrain("info", coded, "--json").stdout)["sizes"]
    data = bytearray(coded.read_bytes())
    data[sizes["header"] + sizes["metadata"] + sizes["thumbnail"] + sum(sizes["passes"]) // 2] ^= 16
    path = tmp_path_factory.mktemp("holed") / "holed.sgr"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("encode", ("--quality", "--bpp", "--strength", "--noise", "--tile", "--thumbnail", "--verify", "--bundle")),
        ("decode", ("--mosaic", "--region", "--salvage", "--bundle", ".exr")),
        ("info", ("--json", "--check", "Needs no bundle")),
    ],
)
def test_help_teaches_with_an_example(command: str, options: tuple[str, ...]) -> None:
    text = " ".join(stillgrain(command, "--help").stdout.split())
    assert f"Example: stillgrain {command}" in text
    for option in options:
        assert option in text


def test_info_says_what_is_in_a_file_as_json_and_as_a_table(coded: Path, bundle: Path, raw_dng: Path) -> None:
    result = stillgrain("info", coded, "--json", "--check")
    facts = json.loads(result.stdout)
    assert result.returncode == 0
    assert (facts["height"], facts["width"], facts["cfa"], facts["quality"]) == (131, 153, "GRBG", 40)
    assert (facts["num_tiles"], facts["damaged_tiles"], facts["blocks"]) == (9, [], ["META", "THMB"])
    assert facts["metadata"]["original_sha256"] == read_raw(raw_dng).sha256
    sizes = facts["sizes"]
    assert sizes["total"] == coded.stat().st_size
    stored = sizes["total"] - sizes["metadata"] - sizes["thumbnail"]
    assert facts["bpp"] == pytest.approx(8 * stored / (131 * 153))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert facts["model_digest"] == manifest["codec_digest"]
    table = stillgrain("info", coded).stdout
    for part in ("GRBG", "131", "153", "plain", "Stillgrain"):
        assert part in table


def test_decode_makes_what_its_outputs_suffix_says(coded: Path, bundle: Path, tmp_path: Path) -> None:
    picture = stillgrain("decode", coded, "-o", tmp_path / "x.png", "--bundle", bundle)
    assert (picture.returncode, picture.stdout) == (0, f"{tmp_path / 'x.png'}\n")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (131, 153)  # upright: the camera was turned
    part = ("--mosaic", "--region", "1,2,40,50")
    assert stillgrain("decode", coded, "-o", tmp_path / "x.dng", "--bundle", bundle, *part).returncode == 0
    mosaic = read_raw(tmp_path / "x.dng")
    assert (mosaic.mosaic.shape, mosaic.cfa) == ((40, 50), "BGGR")  # one line down from GRBG
    with rawpy.imread(str(tmp_path / "x.dng")) as dng:
        assert dng.raw_image.max() > 1024


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("give either a quality", "bits per photosite")),
        (("--quality", "64"), ("quality is 64", "from 0 (smallest file) to 63")),
        (("--quality", "3", "--tile", "8192"), ("tile is 8192", "at most 4096")),
        (("--quality", "3", "--strength", "2"), ("--strength",)),
        (("--quality", "3", "--noise", "-1", "0"), ("noise is -1, 0",)),
        (("--bpp", "0.0001"), ("bpp is 0.0001", "the least", "aim higher")),
    ],
)
def test_what_encode_cannot_do_is_refused_in_words(
    raw_dng: Path, bundle: Path, tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_refused(stillgrain("encode", raw_dng, "-o", tmp_path / "x.sgr", "--bundle", bundle, *words), *parts)
    assert not list(tmp_path.iterdir())


def test_files_that_are_missing_wrong_or_in_the_way_are_refused_by_name(
    raw_dng: Path, coded: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.sgr").write_bytes(b"old")
    gone = stillgrain("encode", tmp_path / "gone.dng", "-o", tmp_path / "old.sgr", "--bundle", bundle, "-q", "3")
    assert_refused(gone, "gone.dng: does not exist")
    onto = stillgrain("encode", raw_dng, "-o", raw_dng, "--bundle", bundle, "-q", "3")
    assert_refused(onto, "photo.dng: is the file itself, which would be lost")
    assert_refused(stillgrain("info", raw_dng), "photo.dng: ")
    jpeg = stillgrain("decode", coded, "-o", tmp_path / "x.jpg", "--bundle", bundle)
    assert_refused(jpeg, "x.jpg: its suffix says no format", ".exr")
    outside = stillgrain("decode", coded, "-o", tmp_path / "x.png", "--bundle", bundle, "--region", "0,0,999,1")
    assert_refused(outside, "0,0,999,1", "not inside the picture of 131 x 153")


def test_a_denoisers_bundle_is_refused(raw_dng: Path, small_bundle: Path, tmp_path: Path) -> None:
    result = stillgrain("encode", raw_dng, "-o", tmp_path / "x.sgr", "--bundle", small_bundle, "-q", "3")
    assert_refused(result, str(small_bundle), "codec")


def test_a_damaged_tile_is_an_error_and_salvaged_on_request(holed: Path, bundle: Path, tmp_path: Path) -> None:
    words = ("decode", holed, "-o", tmp_path / "x.exr", "--bundle", bundle)
    assert_refused(stillgrain(*words), "holed.sgr: tile ", "checksum")
    assert not (tmp_path / "x.exr").exists()
    salvaged = stillgrain(*words, "--salvage")
    assert salvaged.returncode == 1
    assert salvaged.stdout.startswith(f"{tmp_path / 'x.exr'}\ntiles ")
    assert "damaged" in salvaged.stdout
    assert (tmp_path / "x.exr").stat().st_size > 1000
    checked = stillgrain("info", holed, "--check", "--json")
    assert checked.returncode == 1
    [tile] = json.loads(checked.stdout)["damaged_tiles"]
    assert f"tiles {tile} are damaged" in salvaged.stdout
