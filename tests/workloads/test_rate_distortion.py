from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from library.bundle import load_bundle, write_bundle
from library.codec_bundle import load_codec, write_codec_bundle
from library.codecs import rawcodec
from library.errors import ConfigError, DataError, RawFileError
from library.files.exr import write_exr
from library.files.raw import read_raw
from library.files.sgr.container import SgrFile
from library.inference.codec import CodecEngine
from library.inference.engine import Engine
from library.inference.sgr_files import encode_file
from library.inference.subjects import subject_of_raw
from library.models import nafnet
from library.rate_distortion import from_compressai_json
from workloads import simulate
from workloads.rate_distortion import Config, Measurer, RateDistortion, _methods, _sheets, _tasks, run
from workloads.rd_results import UNCODED, Comparison, Measurement, Results
from workloads.rd_scenes import RAWS, RawScene
from workloads.suite import find_pairs, scene_linear

HEIGHT, WIDTH = 170, 182
GOOD = ["a_0", "more/b_0"]
QUALITIES = [0, 40, 63]
OURS = "ours"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_codec(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    small = rawcodec.Config(width=8, latents=8, hyper_latents=4, encoder_blocks=1, decoder_blocks=1)
    facts: dict[str, Any] = {"training": {}, "data_digest": "none", "metrics": {}, "step": 0}
    write_codec_bundle(folder, small.build(), name=f"small {seed}", **facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained codec, an untrained denoiser (which is the bilinear demosaic), three raws, one of them cut short."""
    folder = tmp_path_factory.mktemp("rate_distortion")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    for name, edge in (("a", 0.3), ("more/b", 0.6), ("broken", 0.5), ("to_train_on", 0.5)):
        rgb = np.stack([0.1 + 0.5 * (columns > edge), 0.2 + 0.3 * rows, 0.4 - 0.2 * columns], axis=-1)
        write_exr(folder / "scenes" / f"{name}.exr", rgb, chromaticities="srgb")
    dataset = {"kind": "synthetic", "scenes": str(folder / "scenes"), "crop": 16, "validation_crop": 162}
    dataset["held_out"] = ["a", "more/b", "broken"]
    dataset["sensor"] = {"kind": "parametric", "shot": [4e-3, 5e-3]}
    paths = {"output": str(folder / "suite"), "storage": str(folder)}
    suite = simulate.run(simulate.Config.model_validate({"dataset": dataset, **paths}))
    whole = (suite.raws / "broken_0.dng").read_bytes()
    (suite.raws / "broken_0.dng").write_bytes(whole[: len(whole) // 2])
    write_codec(folder / "codec", 0)
    model = nafnet.Config(width=4, encoder_blocks=(1,), middle_blocks=0, decoder_blocks=(1,)).build().eval()
    write_bundle(folder / "denoiser", model, name="untrained", training={}, data_digest="none", metrics={}, step=0)
    return folder


def config(folder: Path, **changes: Any) -> Config:
    places = {"denoiser": "denoiser", "raws": "suite/raws", "truth": "suite/truth", "output": "out"}
    settings: dict[str, Any] = {key: str(folder / path) for key, path in places.items()}
    settings |= {"codecs": {OURS: str(folder / "codec")}, "baselines": ["jpeg_xl", "jpeg_ls"], "qualities": QUALITIES}
    settings["scaling"] = {"workers": 1, "cpus_per_worker": 1}
    return Config.model_validate(settings | changes)


@pytest.fixture(scope="module")
def found(folder: Path, ray_cluster: str) -> RateDistortion:
    return run(config(folder))


def scene_of(folder: Path, name: str, crop: int | None = None) -> RawScene:
    return RawScene(folder / "suite/raws" / f"{name}.dng", folder / "suite/truth" / f"{name}.exr", crop)


def numbers(measurements: Any) -> list[Measurement]:
    """Without times, which differ each time."""
    return [dataclasses.replace(m, encoding_time=0.0, decoding_time=0.0) for m in measurements]


# --- measuring --------------------------------------------------------------------------------------------------------


def test_bits_of_a_codec_are_those_of_its_file_without_metadata(folder: Path, found: RateDistortion, tmp_path: Path):
    engine = CodecEngine(load_codec(folder / "codec"))
    for name in GOOD:
        for quality in QUALITIES:
            raw, path = read_raw(folder / "suite/raws" / f"{name}.dng"), tmp_path / "a.sgr"
            engine.encode(subject_of_raw(raw, engine.side), path, quality=quality)
            with SgrFile(path) as file:
                left_out = file.sizes.metadata + file.sizes.thumbnail
            (measured,) = (
                m
                for m in found.comparison.measurements
                if (m.image, m.method, m.setting) == (name, OURS, f"q{quality}")
            )
            assert measured.num_bytes == path.stat().st_size - left_out
            assert measured.photosites == HEIGHT * WIDTH
            assert measured.point.bpp == 8 * measured.num_bytes / (HEIGHT * WIDTH)


def test_bits_of_a_classical_codec_are_all_that_its_decoder_needs(folder: Path):
    scene, methods = scene_of(folder, "a_0"), {m.name: m for m in _methods(config(folder), device="cpu")}
    for name, compress in (
        ("JPEG XL planes", lambda member: member.compress(scene.mosaic.numpy())),
        ("JPEG-LS lossless", lambda member: member.compress(scene.raw.mosaic)),
    ):
        method: Any = methods[name]
        member = method.members[0]
        assert method.code(scene, member.name).num_bytes == len(compress(member))


def test_without_loss_the_noise_is_kept_infinitely_well_and_the_truth_as_far_as_the_noise_lets(found: RateDistortion):
    by_key = {(m.image, m.method): m for m in found.comparison.measurements}
    for image in GOOD:
        noisy = next(
            m
            for m in found.comparison.measurements
            if (m.image, m.method, m.setting) == (image, UNCODED, "noisy input")
        )
        for method in ("JPEG XL lossless", "JPEG-LS lossless"):
            lossless = by_key[image, method]
            for domain in ("linear", "stabilized", "developed"):
                assert lossless.metrics[f"psnr.{domain}_to_noisy"] == math.inf
            assert lossless.metrics["ms_ssim.developed_to_noisy"] == 1
            assert lossless.metrics == noisy.metrics


def test_a_picture_that_is_the_truth_is_infinitely_good(folder: Path):
    scene = scene_of(folder, "a_0")
    metrics = scene.judge(scene.truth)
    assert {metrics[name] for name in ("psnr", "psnr.linear", "psnr.stabilized")} == {math.inf}
    assert metrics["ms_ssim"] == pytest.approx(1)
    to_noisy = [metrics[f"psnr.{domain}_to_noisy"] for domain in ("linear", "stabilized", "developed")]
    assert max(to_noisy) < 40
    # Developed, the truth is as far from the noisy picture as that is from the truth: nothing saturates here.
    assert metrics["psnr.developed_to_noisy"] == pytest.approx(scene.judge(scene.noisy)["psnr"])


def test_more_bytes_come_with_a_higher_quality_setting_and_nearer_to_the_noise(found: RateDistortion):
    for image in GOOD:
        curves = found.comparison.curves_of(image)
        sizes = [m.num_bytes for m in found.comparison.measurements if (m.image, m.method) == (image, OURS)]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) == len(QUALITIES)
        fidelity = curves["JPEG XL planes"].values("psnr.stabilized_to_noisy")
        assert (np.diff(fidelity) > 0).all()


def test_every_method_is_measured_at_every_setting_on_every_raw(folder: Path, found: RateDistortion):
    counts: dict[tuple[str, str], int] = {}
    for m in found.comparison.measurements:
        counts[m.image, m.method] = counts.get((m.image, m.method), 0) + 1
        assert m.metrics.keys() == RAWS.metrics.keys()
    for method in _methods(config(folder), device="cpu"):
        assert [counts[image, method.name] for image in GOOD] == [len(method.settings)] * 2
    assert {method for _, method in counts} == {*found.comparison.descriptions, UNCODED}


def test_a_denoised_picture_goes_through_the_same_codec(folder: Path, found: RateDistortion):
    """The untrained denoiser is the bilinear demosaic, so that its curve is that of another picture."""
    means = found.comparison.means
    assert len(means["denoise, then JPEG XL"].points) == len(means["JPEG XL"].points)
    levels = found.comparison.levels("psnr")
    assert levels.keys() == {"noisy input", "denoiser"}
    for method, level in (("JPEG XL", "noisy input"), ("denoise, then JPEG XL", "denoiser")):
        assert means[method].values("psnr")[-1] == pytest.approx(levels[level], abs=1.0)
    assert levels["noisy input"] != levels["denoiser"]


def test_a_codec_behind_a_denoiser_makes_the_file_that_encode_makes_with_one(
    folder: Path, found: RateDistortion, tmp_path: Path
):
    engine, denoiser = CodecEngine(load_codec(folder / "codec")), Engine(load_bundle(folder / "denoiser"))
    curve = found.comparison.curves_of("a_0")[f"denoise, then {OURS}"]
    raw, path = folder / "suite/raws/a_0.dng", tmp_path / "a.sgr"
    bpp = [encode_file(raw, path, engine, quality=quality, denoiser=denoiser).bpp for quality in QUALITIES]
    assert curve.bpp == bpp
    assert bpp != found.comparison.curves_of("a_0")[OURS].bpp


def test_a_centre_crop_keeps_the_phase_of_the_mosaic(folder: Path):
    raw = read_raw(folder / "suite/raws/more/b_0.dng")
    scene = scene_of(folder, "more/b_0", 162)
    top, left = 4, 10  # the CFA must start at an even place
    assert scene.raw.cfa == raw.cfa
    assert torch.equal(scene.mosaic, scene_linear(raw)[top : top + 162, left : left + 162])
    assert torch.equal(scene.truth, scene_of(folder, "more/b_0").truth[..., top : top + 162, left : left + 162])
    with pytest.raises(RawFileError, match="smaller than crop=172"):
        scene_of(folder, "more/b_0", 172)


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on_and_comes_to_the_same(folder: Path, found: RateDistortion, tmp_path: Path):
    output = tmp_path / "out"
    shutil.copytree(found.output, output)
    lines = (output / "results.jsonl").read_bytes().splitlines(keepends=True)
    (output / "results.jsonl").write_bytes(b"".join(lines[:-7]) + lines[-7][:40])
    again = run(config(folder, output=str(output)))
    assert numbers(again.comparison.measurements) == numbers(found.comparison.measurements)
    kept = (output / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert kept[: len(lines) - 7] == lines[:-7]
    assert len(kept) == len(lines) + 1  # the torn line stays, and counts as nothing
    for name in ("ms_ssim.png", "psnr.png", "pictures/a_0/ours.png"):
        assert (output / name).read_bytes() == (found.output / name).read_bytes()


def test_another_bundle_or_setting_makes_new_work_of_what_it_concerns_only(folder: Path, tmp_path: Path):
    write_codec(tmp_path / "other", 1)

    def keys(**changes: Any) -> dict[tuple[str, str, str], str]:
        changed = config(folder, **changes)
        pairs = find_pairs(Path(changed.raws), Path(changed.truth))
        tasks = _tasks(changed, pairs, _methods(changed, device="cpu"))
        return {(task.image, task.method, task.setting): task.key for task in tasks}

    before, other = keys(), keys(codecs={OURS: str(tmp_path / "other")})
    assert len(set(before.values())) == len(before)
    assert {task[1] for task in before if other[task] != before[task]} == {
        OURS,
        f"{OURS}, noise kept",
        f"denoise, then {OURS}",
    }
    more = keys(qualities=[*QUALITIES, 8])
    assert {task: key for task, key in more.items() if task in before} == before
    assert {task[2] for task in more.keys() - before.keys()} == {"q8"}
    assert not set(keys(crop=162).values()) & set(before.values())


def test_an_actor_that_finds_another_bundle_than_the_driver_knew_measures_nothing(folder: Path, tmp_path: Path):
    """A training replaces its bundle at every better step: new numbers stood under the older one's digest."""
    shutil.copytree(folder / "codec", tmp_path / "codec")
    changing = config(folder, codecs={OURS: str(tmp_path / "codec")})
    pairs = {"a_0": find_pairs(folder / "suite/raws", folder / "suite/truth")["a_0"]}
    methods = _methods(changing, device="cpu")
    tasks = {task.method: task for task in _tasks(changing, pairs, methods)}
    write_codec(tmp_path / "codec", 1)
    measurer = Measurer(changing.model_dump(mode="json"))
    for item in (tasks[OURS], *_sheets(changing, pairs, methods)):
        with pytest.raises(ConfigError, match="was replaced while this ran"):
            measurer.process(item)
    assert isinstance(measurer.process(tasks["JPEG-LS lossless"]), Measurement)


def test_results_keep_infinity_and_pass_over_a_line_that_was_cut_short(tmp_path: Path):
    lossless = measurement("a", "m", "s", 100, psnr=math.inf)
    Results(tmp_path).append(lossless)
    text = (tmp_path / "results.jsonl").read_text()
    assert "Infinity" not in text
    (tmp_path / "results.jsonl").write_text(text + text[:30])
    results = Results(tmp_path)
    assert results.by_key == {lossless.key: lossless}
    second = measurement("b", "m", "s", 100)
    results.append(second)
    assert Results(tmp_path).by_key == {m.key: m for m in (lossless, second)}


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_damaged_raw_is_named_and_harms_no_other(found: RateDistortion):
    assert found.comparison.images == GOOD
    assert list(found.comparison.failures) == ["broken_0"]
    assert "truncated or damaged" in found.comparison.failures["broken_0"]
    assert not found.comparison.problems
    assert found.exit_code == 1
    assert "failed: broken_0: " in str(found)


def test_truth_can_be_named_and_what_is_missing_is_said(folder: Path, tmp_path: Path):
    raws, truth = folder / "suite/raws", folder / "suite/truth"
    assert find_pairs(raws, truth, {"a_0": "more/b_0"}) == {"a_0": (raws / "a_0.dng", truth / "more/b_0.exr")}
    for named, message in (({"a_1": "a_0"}, "raws holds no a_1"), ({"a_0": "a_1"}, "truth holds no a_1")):
        with pytest.raises(DataError, match=message):
            run(config(folder, truth_of=named, output=str(tmp_path / "out")))
    with pytest.raises(DataError, match=r"a_0, broken_0, more/b_0 .* no truth of the same name"):
        run(config(folder, truth=str(raws), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_codec_that_bears_a_baselines_name_is_refused(folder: Path):
    with pytest.raises(ConfigError, match="'JPEG XL' is also the name of another curve"):
        run(config(folder, codecs={"JPEG XL": str(folder / "codec")}))


def test_an_actor_names_the_measurement_that_is_not_a_number(folder: Path):
    measurer = Measurer(config(folder).model_dump(mode="json"))
    tasks = _tasks(config(folder), {"a_0": find_pairs(folder / "suite/raws", folder / "suite/truth")["a_0"]},
                   list(measurer.methods.values()))  # fmt: skip
    task = next(task for task in tasks if task.method == OURS)
    codec: Any = measurer.methods[OURS]
    with torch.no_grad():
        next(p for name, p in codec.engine.model.named_parameters() if name.startswith("synthesis_shortcut")).fill_(
            math.nan
        )
    with pytest.raises(DataError, match=r"psnr|ms_ssim"):
        measurer.measure(task)


# --- what follows -----------------------------------------------------------------------------------------------------


def measurement(
    image: str,
    method: str,
    setting: str,
    num_bytes: int,
    *,
    psnr: float = 30.0,
    ms_ssim: float = 0.9,
    iso: float = 6400,
) -> Measurement:
    metrics = dict.fromkeys(RAWS.metrics, psnr) | {"ms_ssim": ms_ssim}
    key = f"{image} {method} {setting}"
    return Measurement(key, image, method, setting, num_bytes, 8000, metrics, 1.0, 0.5, "Test", iso)


def painted(factors: dict[str, float], *, images: dict[str, float], shift: float = 0.0) -> Comparison:
    """Curves that differ by their bytes alone, `shift` dB of quality apart for ours."""
    lines = [
        measurement(
            image, method, f"s{i}", round(factor * 2**i * 1000), psnr=25.0 + 2 * i,
            ms_ssim=1 - 10 ** -((8 + 2 * i + (shift if method == OURS else 0)) / 10), iso=iso,
        )
        for image, iso in images.items() for method, factor in factors.items() for i in range(6)
    ]  # fmt: skip
    return Comparison(lines, dict.fromkeys(factors, "painted"), [OURS], {}, {})


def test_a_target_is_met_from_its_number_on():
    for factor, is_met in ((0.49, True), (0.51, False)):
        comparison = painted({OURS: factor, "JPEG XL": 1.0}, images={"a": 6400, "b": 3200})
        (target,) = comparison.targets
        assert target.rate.percent == pytest.approx(100 * (factor - 1), abs=0.2)
        assert target.is_met is is_met
        assert ("is met" if is_met else "is missed") in str(target)
    factors = {OURS: 0.4, "JPEG XL": 1.0, "denoise, then JPEG XL": 0.45}
    assert [t.is_met for t in painted(factors, images={"a": 6400}).targets] == [True, False]


def test_only_raws_of_high_iso_count_for_the_target():
    comparison = painted({OURS: 0.4, "JPEG XL": 1.0}, images={"a": 100, "b": 6400})
    assert [target.num_images for target in comparison.targets] == [1]
    (target,) = painted({OURS: 0.4, "JPEG XL": 1.0}, images={"a": 100}).targets
    assert target.is_met is None
    assert "no raw of ISO 3200" in str(target)


def test_a_codec_whose_best_is_below_the_others_worst_misses_the_target_though_there_is_no_rate():
    (target,) = painted({OURS: 0.4, "JPEG XL": 1.0}, images={"a": 6400}, shift=-20.0).targets
    assert target.rate.percent is None
    assert target.is_met is False
    assert "missed; on 1 of 1 raws its best is below the other's worst" in str(target)


def test_a_codec_whose_smallest_file_is_better_than_the_others_best_is_judged_by_the_bytes_of_both():
    """The other never comes where a rate could be taken; what it spends on its best is then the least that is saved."""
    (target,) = painted({OURS: 0.4, "JPEG XL": 1.0}, images={"a": 6400}, shift=20.0).targets
    assert target.rate.percent is None
    assert target.ahead == (pytest.approx(100 * (1 - 0.4 / 32)),)
    assert target.is_met is True
    assert "with 98.8 % fewer bytes" in str(target)
    (target,) = painted({OURS: 30.0, "JPEG XL": 1.0}, images={"a": 6400}, shift=20.0).targets
    assert target.is_met is None


def test_bytes_are_compared_at_levels_that_both_curves_have():
    rows = painted({OURS: 0.4, "JPEG XL": 1.0}, images={"a": 6400}).saved_at_levels(OURS)
    assert list(rows) == [0.85, 0.9, 0.925, 0.95, 0.97, 0.98]
    assert all(row["JPEG XL"] == pytest.approx(60, abs=0.3) for row in rows.values())


def test_a_method_that_fails_somewhere_has_no_mean_curve_and_says_why():
    whole = painted({OURS: 0.4, "JPEG XL": 1.0, "AVIF": 1.0}, images={"a": 6400, "b": 6400})
    lines = [m for m in whole.measurements if (m.image, m.method, m.setting) != ("b", "AVIF", "s3")]
    descriptions = {**whole.descriptions, "JPEG 2000": ""}
    missing = {"JPEG 2000": "imagecodecs is built without JPEG2K"}
    comparison = Comparison(lines, descriptions, [OURS], missing, {("b", "AVIF"): "ran out of memory"})
    assert set(comparison.means) == {OURS, "JPEG XL"}
    assert comparison.problems == {**missing, "AVIF": "b: ran out of memory"}
    assert not comparison.failures
    assert len(comparison.curves_of("a")["AVIF"].points) == 6
    assert RateDistortion(Path("out"), comparison).exit_code == 1
    assert "without AVIF: b: ran out of memory" in str(RateDistortion(Path("out"), comparison))


def test_means_are_taken_setting_by_setting_even_where_bytes_fall_with_the_setting():
    lines = [
        measurement("a", OURS, "low", 100, psnr=20.0),
        measurement("a", OURS, "high", 90, psnr=30.0),
        measurement("b", OURS, "low", 100, psnr=22.0),
        measurement("b", OURS, "high", 400, psnr=32.0),
    ]
    mean = Comparison(lines, {OURS: ""}, [OURS], {}, {}).means[OURS]
    assert [(point.bpp, point.metrics["psnr"]) for point in mean.points] == [(0.1, 21.0), (0.245, 31.0)]


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_files_hold_the_curves(found: RateDistortion):
    means = found.comparison.means
    with (found.output / "curves.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["curve"] for row in rows] == [name for name, curve in means.items() for _ in curve.points]
    stored = from_compressai_json(json.loads((found.output / "curves/ours.json").read_text()))
    assert stored == means[OURS]
    with (found.output / "images/more/b_0.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    content = json.loads((found.output / "rate_distortion.json").read_text())
    assert {(rate["codec"], rate["anchor"]) for rate in content["bd_rates"]} == {
        (OURS, anchor) for anchor in ("JPEG XL", f"denoise, then {OURS}", "denoise, then JPEG XL", "JPEG XL planes")
    }


def test_the_page_loads_nothing_and_has_every_verdict_and_method(found: RateDistortion):
    page = found.page.read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("<img") == page.count('<img src="data:image/png;base64,')
    for word in (*found.comparison.descriptions, "Not measured: broken_0", "Keeping the noise", "Without loss"):
        assert word in page
    assert len(found.comparison.targets) == 2
    for target in found.comparison.targets:
        assert target.anchor in page


def test_the_pictures_side_by_side_take_about_the_same_bytes(found: RateDistortion):
    for image in GOOD:
        folder = found.output / "pictures" / image
        about = {p["file"]: p for p in json.loads((folder / "about.json").read_text())["pictures"]}
        assert list(about) == ["truth.png", "noisy.png", "jpeg_xl.png", "denoised_jpeg_xl.png", "ours.png"]
        for file in ("jpeg_xl.png", "denoised_jpeg_xl.png"):
            assert about[file]["bpp"] == pytest.approx(about["ours.png"]["bpp"], rel=0.15)
        for file in about:
            with Image.open(folder / file) as picture:
                assert picture.size == (HEIGHT, HEIGHT)


def test_the_command_prints_a_line_for_every_comparison_and_the_page(found: RateDistortion):
    lines = str(found).splitlines()
    assert sum("│ ours" in line for line in lines) == 4
    assert sum("ours against" in line for line in lines) == 2
    assert lines[-1] == str(found.page)
