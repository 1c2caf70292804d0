from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from library.codec_bundle import load_codec, write_codec_bundle
from library.codecs import rawcodec
from library.errors import ConfigError, DataError, ImageFileError
from library.inference.codec import CodecEngine
from library.inference.compressors import ladder
from library.inference.compressors.display import DisplayPicture
from library.inference.compressors.jpeg_xl import JpegXlLossless
from library.inference.sgr_files import encode_file
from library.rate_distortion import from_compressai_json
from workloads.rate_distortion import Config, RateDistortion, run
from workloads.rd_methods import Original, PictureMethod, methods_of_pictures
from workloads.rd_scenes import PICTURES, PictureScene, find_pictures

HEIGHT, WIDTH = 170, 182
NAMES = ["a", "more/b"]
QUALITIES = [0, 20, 40, 63]
OURS = "ours"
LOSSLESS = DisplayPicture(JpegXlLossless())


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained codecs of pictures and of raws; a picture of 8 bits, one of 16, and lines as if published."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    base = np.stack([0.1 + 0.6 * (columns > 0.4), 0.2 + 0.5 * rows, 0.5 + 0.3 * np.sin(40 * rows * columns)], axis=-1)
    srgb = np.clip(base + rng.normal(0, 0.02, base.shape), 0, 1)
    (folder / "pictures/more").mkdir(parents=True)
    Image.fromarray((srgb * 255).round().astype(np.uint8)).save(folder / "pictures/a.png")
    deep = imagecodecs.png_encode((srgb[::-1] * 65535).round().astype(np.uint16))
    (folder / "pictures/more/b.png").write_bytes(deep)
    for name, in_channels in (("codec", 3), ("of_raws", 4)):
        torch.manual_seed(0)
        small = rawcodec.Config(
            in_channels=in_channels, width=8, latents=8, hyper_latents=4, encoder_blocks=1, decoder_blocks=1
        )
        facts: dict[str, Any] = {"training": {}, "data_digest": "none", "metrics": {}, "step": 0}
        write_codec_bundle(folder / name, small.build(), name=name, **facts)
    line = {"bpp": [0.1, 0.5, 2.0, 8.0], "psnr": [10.0, 20.0, 30.0, 40.0], "ms_ssim": [0.1, 0.5, 0.9, 0.99]}
    published = {"dataset": "Kodak", "note": "painted", "curves": {"vtm": line, "compressai x [mse]": line}}
    (folder / "published.json").write_text(json.dumps(published))
    return folder


def config(folder: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {"codecs": {OURS: str(folder / "codec")}, "pictures": str(folder / "pictures")}
    settings |= {"output": str(folder / "out"), "kodak_reference": str(folder / "published.json")}
    settings |= {"baselines": ["jpeg_xl", "jpeg_ls"], "qualities": QUALITIES}
    settings["scaling"] = {"workers": 1, "cpus_per_worker": 1}
    return Config.model_validate({key: value for key, value in (settings | changes).items() if value is not None})


@pytest.fixture(scope="module")
def found(folder: Path, ray_cluster: str) -> RateDistortion:
    return run(config(folder))


def picture(folder: Path, name: str = "a", crop: int | None = None) -> PictureScene:
    return PictureScene(folder / "pictures" / f"{name}.png", crop)


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_through_a_lossless_codec_comes_back_exactly(folder: Path, name: str):
    scene = picture(folder, name)
    method = PictureMethod("JPEG XL lossless", (LOSSLESS,), Original())
    coded = method.code(scene, LOSSLESS.name)
    metrics = scene.judge(coded.camera_rgb)
    assert metrics["psnr"] == math.inf
    assert metrics["ms_ssim"] == 1
    assert metrics["psnr.linear"] > 100
    with Image.open(folder / "pictures/a.png") as image:
        codes = np.asarray(image).astype(np.uint16) * 257
    if name == "a":
        assert coded.num_bytes == len(LOSSLESS.codec.encode(codes))


def test_psnr_is_that_of_the_8_bit_codes(folder: Path):
    """One code of all off by one: 10 log10(255^2 * H * W * 3)."""
    scene = picture(folder)
    content = LOSSLESS.compress(scene.truth[0].permute(1, 2, 0).numpy())
    codes = LOSSLESS.codec.decode(content)
    codes[50, 60, 1] += 257
    changed = LOSSLESS.decompress(LOSSLESS.codec.encode(codes))
    psnr = scene.judge(torch.from_numpy(changed).permute(2, 0, 1)[None])["psnr"]
    assert psnr == pytest.approx(10 * math.log10(255**2 * HEIGHT * WIDTH * 3), abs=1e-3)


@pytest.mark.parametrize("family", ["JPEG XL", "JPEG 2000", "AVIF 12-bit", "EXR half DWAA"])
def test_more_bytes_of_a_classical_codec_are_no_worse(folder: Path, family: str):
    scene = picture(folder)
    members = tuple(member for member in ladder("display") if member.family == family)[::3]
    method = PictureMethod(family, members, Original())
    coded = [method.code(scene, setting) for setting in method.settings]
    assert (np.diff([c.num_bytes for c in coded]) > 0).all()
    judged = [scene.judge(c.camera_rgb) for c in coded]
    for metric in PICTURES.metrics:
        assert (np.diff([metrics[metric] for metrics in judged]) > 0).all(), metric


def test_a_crop_is_the_centre_of_what_is_coded_and_compared(folder: Path):
    whole, crop = picture(folder), picture(folder, crop=162)
    assert torch.equal(crop.truth, whole.truth[..., 4:166, 10:172])
    assert crop.photosites == 162**2
    subject = crop.subject(64)
    assert subject.samples.shape == (3, 192, 192)
    assert torch.equal(subject.samples[:, :162, :162], crop.truth[0])
    with pytest.raises(ImageFileError, match="is 182 x 170 px, but 172 a side are to be compared"):
        picture(folder, crop=172)


def test_a_codec_makes_the_file_that_encode_makes(folder: Path, tmp_path: Path):
    engine, scene = CodecEngine(load_codec(folder / "codec")), picture(folder)
    (method, *_) = methods_of_pictures({OURS: engine}, (40,), ())
    encoded = encode_file(folder / "pictures/a.png", tmp_path / "a.sgr", engine, quality=40)
    assert method.code(scene, "q40").bpp(scene) == encoded.bpp


# --- a run ------------------------------------------------------------------------------------------------------------


def test_every_method_is_measured_on_every_picture_and_nothing_else(found: RateDistortion):
    comparison = found.comparison
    assert comparison.images == NAMES
    assert list(comparison.means) == [OURS, f"{OURS}, noise kept", "JPEG XL"]
    assert comparison.ours == [OURS, f"{OURS}, noise kept"]
    assert all(m.metrics.keys() == PICTURES.metrics.keys() for m in comparison.measurements)
    assert {m.photosites for m in comparison.measurements} == {HEIGHT * WIDTH}
    assert not comparison.targets
    assert found.exit_code == 0
    stored = from_compressai_json(json.loads((found.output / "curves/ours.json").read_text()))
    assert stored == comparison.means[OURS]
    table = str(found).splitlines()
    assert "means over 2 pictures" in table[0]
    assert sum("│ ours" in line for line in table) == 2


def test_a_second_run_measures_nothing_anew(folder: Path, found: RateDistortion, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # where nobody listens
    before = (found.output / "results.jsonl").read_bytes()
    again = run(config(folder))
    assert (found.output / "results.jsonl").read_bytes() == before
    assert again.comparison.measurements == found.comparison.measurements


def test_the_page_shows_published_lines_and_what_is_compared_with_them(found: RateDistortion):
    page = found.page.read_text(encoding="utf-8")
    for word in ("Beside published curves", "vtm", "bits per pixel", "Picture by picture", "PSNR, 8-bit sRGB"):
        assert word in page
    told = re.sub(r'src="data:[^"]*"', "", page.partition("<details>")[0])
    for word in ("photosite", "raws", "Keeping the noise", "Without loss", "ISO"):
        assert word not in told
    published = json.loads((found.output / "rate_distortion.json").read_text())["published"]
    assert {(rate["anchor"], rate["codec"]) for rate in published} == {
        (anchor, codec) for anchor in ("vtm", "compressai x [mse]") for codec in found.comparison.ours
    }


def test_the_pictures_side_by_side_are_the_original_a_classical_one_and_ours(folder: Path, found: RateDistortion):
    shown = found.output / "pictures/a"
    about = json.loads((shown / "about.json").read_text())["pictures"]
    assert [picture["file"] for picture in about] == ["truth.png", "jpeg_xl.png", "ours.png"]
    with Image.open(shown / "truth.png") as image, Image.open(folder / "pictures/a.png") as original:
        assert np.array_equal(np.asarray(image), np.asarray(original)[:, 6:176])


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raws": "r", "truth": "t"}, "give either raws with truth, or pictures"),
        ({"pictures": None}, "give either raws with truth, or pictures"),
        ({"pictures": None, "raws": "r"}, "raws and truth belong together"),
        ({"truth": "t"}, "raws and truth belong together"),
        ({"denoiser": "d"}, "denoiser is for raws, and pictures are given: leave denoiser out"),
        ({"truth_of": {"a": "b"}}, "truth_of is for raws"),
        ({"pictures": None, "raws": "r", "truth": "t"}, "kodak_reference is drawn beside what is measured of pictures"),
    ],
)
def test_what_is_coded_is_either_raws_or_pictures(folder: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        config(folder, **changes)


def test_codecs_must_take_what_is_coded(folder: Path):
    with pytest.raises(ConfigError, match=r"codecs.ours: .*of_raws takes raws, but pictures are given"):
        run(config(folder, codecs={OURS: str(folder / "of_raws")}))
    (folder / "raws").mkdir()
    for suffix in ("raws/a.dng", "raws/a.exr"):
        (folder / suffix).touch()
    with pytest.raises(ConfigError, match=r"codecs.ours: .*codec takes pictures, but raws are given"):
        run(config(folder, pictures=None, kodak_reference=None, raws=str(folder / "raws"), truth=str(folder / "raws")))


def test_a_folder_without_pictures_is_named(folder: Path, tmp_path: Path):
    assert list(find_pictures(folder / "pictures")) == NAMES
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match=f"pictures: {path}"):
            run(config(folder, pictures=str(path)))


def test_a_picture_too_small_to_compare_is_named(tmp_path: Path):
    Image.new("RGB", (200, 160)).save(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match="is 200 x 160 px, but 161 a side are to be compared"):
        PictureScene(tmp_path / "a.png", None)
