from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from library.bundle import write_bundle
from library.codec_bundle import CodecBundle, write_codec_bundle
from library.codecs import balle_manypriors, rawcodec
from library.errors import DataError
from library.files.picture import write_png
from library.inference.ledger import Entry, Ledger, Status
from library.models import nafnet
from library.training.recorder import Recorder
from tests.evaluations import write_evaluation
from tests.pages import Page
from workloads.report import Step, read_steps, write_report, write_run_report

QUALITIES = (8, 24, 40, 56)


def svg_texts(page: Page) -> dict[str, list[str]]:
    """By what each chart is of, the texts in it: matplotlib draws them as paths, and names each in a comment."""
    texts = {}
    for image in page.images:
        head, _, content = (image["src"] or "").partition(";base64,")
        if head == "data:image/svg+xml":
            texts[image["alt"] or ""] = re.findall("<!-- (.+?) -->", base64.b64decode(content).decode())
    return texts


def picture(seed: int, side: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "bundle"
    model = nafnet.Config(width=4, encoder_blocks=(1,), middle_blocks=0, decoder_blocks=(1,)).build()
    metrics = {"val/psnr": 25.6789, "val/psnr.linear": 31.5, "val/ms_ssim": 0.98765}
    write_bundle(folder, model, name="q", training={}, data_digest="d", metrics=metrics, step=40)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, bundle: Path) -> Path:
    """What a training leaves."""
    folder = tmp_path / "quiet-run"
    recorder = Recorder(folder)
    recorder.start(0)
    for step in (20, 40, 60):
        recorder.log(step, "train", {"loss": 1 / step, "l1": 1 / step, "lr": 1e-3})
        recorder.log(step, "val", {"psnr": 20 + step / 10, "psnr.linear": 30.0, "ms_ssim": 0.9})
    recorder.close()
    shutil.copytree(bundle, folder / "bundle")
    for number, scene in enumerate(("harbour", "night_market")):
        for role in ("noisy", "denoised", "truth"):
            write_png(folder / "images" / f"{scene}_{role}.png", picture(number))
    (folder / "run.yaml").write_text("workload: denoise\nname: quiet-run\n")
    return folder


def codec_metrics(step: int) -> dict[str, float]:
    """Of a codec of many qualities, which improves."""
    metrics = {"loss": 20 / step, "rate_gap": 0.0042}
    for number, quality in enumerate(QUALITIES):
        metrics |= {f"bpp.q{quality}": 0.1234 * 2.5**number, f"psnr.q{quality}": 25 + 3 * number + step / 60}
        metrics |= {f"ms_ssim.q{quality}": 0.9 + 0.025 * number, f"psnr.linear.q{quality}": 35.0 + number}
    return metrics


@pytest.fixture(scope="module")
def codec_bundle(tmp_path_factory: pytest.TempPathFactory) -> CodecBundle:
    sizes = {"width": 8, "latents": 8, "hyper_latents": 4, "encoder_blocks": 1, "decoder_blocks": 1}
    model = rawcodec.Config.model_validate(sizes).build()
    metrics = {f"val/{name}": value for name, value in codec_metrics(40).items()}
    folder = tmp_path_factory.mktemp("codec") / "bundle"
    return write_codec_bundle(folder, model, name="c", training={}, data_digest="d", metrics=metrics, step=40)


@pytest.fixture
def codec_folder(tmp_path: Path, codec_bundle: CodecBundle) -> Path:
    """What the training of a codec of many qualities leaves."""
    folder = tmp_path / "codec-run"
    recorder = Recorder(folder)
    recorder.start(0)
    for step in (20, 40, 60):
        streams = {"bpp.z": 0.05, "bpp.y1": 8 / step, "bpp.y2": 5 / step}
        losses = {"loss": 30 / step, "bpp": sum(streams.values()), **streams, "distortion": 0.1, "mse": 0.1}
        recorder.log(step, "train", losses | {"lmbda": 700.0, "lr": 1e-3})
        recorder.log(step, "val", codec_metrics(step))
    recorder.close()
    shutil.copytree(codec_bundle.path, folder / "bundle")
    for number, scene in enumerate(("harbour", "night_market")):
        for role in ("noisy", "decoded", "truth"):
            write_png(folder / "images" / f"{scene}_{role}.png", picture(number))
    (folder / "run.yaml").write_text("workload: compress\nname: codec-run\n")
    return folder


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """Two raws of which the first bundle wins one metric and non-local means another."""
    return write_evaluation(tmp_path / "evaluation").output


def entry(name: str, status: Status, error: str | None = None) -> Entry:
    done: dict[str, Any] = {"input_sha256": "a", "output_sha256": "b", "output_size": 1, "output_mtime_ns": 1}
    unknown: dict[str, Any] = dict.fromkeys(done)
    return Entry(
        input_path=f"{name}.cr2",
        output_path=f"{name}.dng",
        input_size=1,
        input_mtime_ns=1,
        bundle_digest="d",
        parameters={},
        engine="1",
        status=status,
        seconds=65.0,
        error=error,
        **(done if status == "done" else unknown),
    )


def test_a_page_without_any_extras_holds_the_run(run_folder: Path):
    path = write_run_report(run_folder)
    page = Page(path)
    assert path == run_folder / "report.html"
    for expected in ("quiet-run", "harbour", "night_market", "25.68", "0.9877", "31.50", "Learning curves", "step 40"):
        assert expected in page.text
    assert "workload: denoise name: quiet-run" in page.text
    assert "classical" not in page.text
    assert "Archive" not in page.text
    assert [image["alt"] for image in page.images[-6:]] == ["Noisy (Malvar demosaic)", "Denoised", "Truth"] * 2


def test_a_codec_is_told_by_its_middle_quality(codec_folder: Path, codec_bundle: CodecBundle):
    page = Page(write_run_report(codec_folder))
    assert page.texts[2].startswith(
        "A rawcodec codec of 64 qualities, trained for 60 steps; its bundle holds the weights"
    )
    macs = codec_bundle.model.macs_per_pixel
    start = page.texts.index("Validation rate, at q40")
    assert page.texts[start : start + 21] == [
        *("Validation rate, at q40", "0.771", "bpp"),
        *("Validation PSNR, developed, at q40", "31.67", "dB"),
        *("Validation MS-SSIM, at q40", "0.9500"),
        *("Validation PSNR, linear, at q40", "37.00", "dB"),
        *("Coded bytes, against estimate", "+0.42", "%"),
        *("Encoding, per pixel", f"{(macs['encoder'] + macs['entropy']) / 1e3:,.2f}", "kMAC"),
        *("Decoding, per pixel", f"{(macs['decoder'] + macs['entropy']) / 1e3:,.2f}", "kMAC"),
        "Rate and distortion",
    ]


def test_the_facts_of_a_codec_are_those_of_its_geometry(codec_folder: Path, codec_bundle: CodecBundle):
    texts = Page(write_run_report(codec_folder)).texts
    facts = dict(itertools.pairwise(texts))
    model = codec_bundle.model
    assert facts["Analysis reach (context a latent needs)"] == f"{model.analysis_reach} input pixels"
    assert facts["Synthesis reach (latents around a pixel's own)"] == str(model.synthesis_reach)
    assert facts["Stride (from latent to latent)"] == f"{model.stride} input pixels"
    assert facts["Parameters"] == f"{model.num_parameters:,}"
    assert facts["Codec (what its files are decoded with)"] == codec_bundle.codec_digest.hex()
    assert not any("Halo" in text for text in texts)


def test_a_codec_shows_what_it_decoded_and_from_which_quality(codec_folder: Path):
    page = Page(write_run_report(codec_folder))
    assert [image["alt"] for image in page.images[-6:]] == ["Noisy (Malvar demosaic)", "Decoded", "Truth"] * 2
    assert "Decoded from quality 40." in page.text
    assert "Denoised" not in page.text


def test_a_codec_has_curves_of_its_streams_and_qualities_and_one_of_quality_over_rate(codec_folder: Path):
    over_rate, in_decibels, loss, rate, psnr = svg_texts(Page(write_run_report(codec_folder))).values()
    by_rate = [f"q{quality}" for quality in QUALITIES]
    for texts in (over_rate, in_decibels):
        assert "rate (bpp, log scale)" in texts
        assert [text for text in texts if text.startswith("q")] == by_rate
    assert [text for text in psnr if text.startswith("q")] == by_rate[::-1]
    assert rate[-4:] == ["total", "z", "y1", "y2"]
    assert loss[-3:] == ["training", "validation", "published"]


def test_one_quality_makes_no_curve_over_rate(codec_folder: Path):
    """Nor does a second one that has no place on a log axis, since it costs nothing."""
    manifest = codec_folder / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["metrics"] = {"val/bpp.q8": 0.0, "val/psnr.q8": 20.0, "val/ms_ssim.q8": 0.8} | {
        name: value for name, value in content["metrics"].items() if name.endswith("q24")
    }
    manifest.write_text(json.dumps(content))
    page = Page(write_run_report(codec_folder))
    assert "Rate and distortion" not in page.text
    assert "Validation rate, at q24" in page.text


def test_a_codec_of_one_rate_names_no_quality(codec_folder: Path):
    model = balle_manypriors.Config(hidden=4, latents=4, num_priors=2).build()
    metrics = {"val/loss": 1.0, "val/bpp": 1.5, "val/psnr": 30.0, "val/psnr.linear": 36.0, "val/ms_ssim": 0.95}
    shutil.rmtree(codec_folder / "bundle")
    write_codec_bundle(codec_folder / "bundle", model, name="c", training={}, data_digest="d", metrics=metrics, step=40)
    page = Page(write_run_report(codec_folder))
    assert "A balle_manypriors codec of one rate, trained for 60 steps" in page.text
    start = page.texts.index("Validation rate")
    assert page.texts[start + 1 : start + 5] == ["1.50", "bpp", "Validation PSNR, developed", "30.00"]
    assert "Decoded from quality" not in page.text
    assert "Rate and distortion" not in page.text


def test_a_codec_without_a_bundle_yet_has_its_curves(codec_folder: Path):
    shutil.rmtree(codec_folder / "bundle")
    loss, rate, psnr = svg_texts(Page(write_run_report(codec_folder))).values()
    assert "total" in rate
    assert "q56" in psnr
    assert "published" not in loss + psnr


def test_nothing_is_fetched_from_anywhere(run_folder: Path, evaluation: Path):
    path = write_run_report(run_folder, evaluation=evaluation, steps=[Step(1.0, "curl https://example.org")])
    page = Page(path)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", path.read_text(encoding="utf-8"))
    (policy,) = (a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_picture_decodes(run_folder: Path, evaluation: Path):
    images = Page(write_run_report(run_folder, evaluation=evaluation)).images
    kinds = {"image/png": 0, "image/svg+xml": 0}
    for attributes in images:
        head, _, content = (attributes["src"] or "").partition(";base64,")
        kinds[head.removeprefix("data:")] += 1
        decoded = base64.b64decode(content, validate=True)
        if head.endswith("png"):
            assert np.asarray(Image.open(io.BytesIO(decoded))).shape == (40, 40, 3)
        else:
            assert xml.etree.ElementTree.fromstring(decoded).tag.endswith("svg")
    assert kinds == {"image/png": 2 * 3 + 2 * 5, "image/svg+xml": 3}


def test_the_evaluation_is_a_table_with_the_best_in_bold(run_folder: Path, evaluation: Path):
    page = Page(write_run_report(run_folder, evaluation=evaluation))
    assert page.bold == ["0.9100", "35.50", "27.25"]
    assert "first is 7.25 dB [7.00, 7.50] above the input in developed PSNR." in page.text
    assert "first is 1.25 dB [1.25, 1.25] above non-local means, the best classical denoiser here." in page.text
    note = "best; Maker Model, ISO 3200; 1.50 megapixels denoised in 2.2 s"
    for expected in ("street_0", note, "broken_0 (is truncated)"):
        assert expected in page.text


def test_a_report_of_an_evaluation_is_the_evaluations_own_page(run_folder: Path, evaluation: Path):
    assert write_report(evaluation) == evaluation / "evaluation.html"
    assert write_report(run_folder) == run_folder / "report.html"
    with pytest.raises(DataError, match="belong on the page of one"):
        write_report(evaluation, archives=[run_folder])


def test_what_a_name_holds_is_text_and_no_markup(run_folder: Path, evaluation: Path):
    page = Page(write_run_report(run_folder, evaluation=evaluation, steps=[Step(1.0, "echo <b>1</b> && echo 2")]))
    assert "more/<lamp>_0" in page.text
    assert "echo <b>1</b> && echo 2" in page.text
    assert "lamp" not in {tag for tag, _ in page.tags}


def test_an_archive_shows_its_failures_first_and_all_of_them(run_folder: Path, tmp_path: Path):
    with Ledger.open(tmp_path / "archive") as ledger:
        for number in range(203):
            ledger.record(entry(f"a{number:03}", "done"))
        ledger.record(entry("z", "failed", "z.cr2: is empty"))
        ledger.record(entry("zz", "quarantined", "overran the time limit"))
    page = Page(write_run_report(run_folder, archives=[tmp_path / "archive"]))
    texts = page.texts[page.texts.index("Archive archive") :]
    assert "205 outputs: 203 done, 1 failed, 1 quarantined; 222 min 05 s of work." in texts
    rows = texts[texts.index("Seconds") + 1 :]
    assert rows[:9:4] == ["z.cr2", "zz.cr2", "a000.cr2"]
    assert rows[1:8:4] == ["z.cr2: is empty", "overran the time limit"]
    assert "5 more raws, all done, are in the ledger." in page.text


def test_the_commands_and_how_long_they_took_are_shown(run_folder: Path, tmp_path: Path):
    (tmp_path / "steps.tsv").write_text("131\tstillgrain run a.yaml\n9\tstillgrain run b.yaml\n")
    page = Page(write_run_report(run_folder, steps=read_steps(tmp_path / "steps.tsv")))
    start = page.texts.index("stillgrain run a.yaml")
    assert page.texts[start : start + 4] == ["stillgrain run a.yaml", "2 min 11 s", "stillgrain run b.yaml", "9.0 s"]


def test_a_file_that_holds_no_steps_is_refused(tmp_path: Path):
    (tmp_path / "steps.tsv").write_text("soon, stillgrain run a.yaml\n")
    with pytest.raises(DataError, match=r"steps\.tsv: holds no steps"):
        read_steps(tmp_path / "steps.tsv")


def test_a_large_picture_is_cut_to_its_centre(run_folder: Path):
    large = picture(7, side=300)
    write_png(run_folder / "images" / "harbour_truth.png", large)
    truth = Page(write_run_report(run_folder)).images[-4]["src"]
    assert truth is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(truth.partition(",")[2]))))
    np.testing.assert_array_equal(shown, large[22:278, 22:278])


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path: Path):
    (tmp_path / "young").mkdir()
    page = Page(write_run_report(tmp_path / "young"))
    assert "A training run after 0 steps, without a bundle yet." in page.text
    assert page.images == []


def test_writing_again_gives_the_same_page_and_leaves_nothing_else(run_folder: Path, evaluation: Path):
    before = set(run_folder.rglob("*"))
    first = write_run_report(run_folder, evaluation=evaluation).read_bytes()
    assert write_run_report(run_folder, evaluation=evaluation).read_bytes() == first
    assert set(run_folder.rglob("*")) - before == {run_folder / "report.html"}


def test_a_folder_without_an_evaluation_is_refused_in_words(run_folder: Path):
    with pytest.raises(DataError, match="holds no evaluation"):
        write_run_report(run_folder, evaluation=run_folder)
    assert not (run_folder / "report.html").exists()
