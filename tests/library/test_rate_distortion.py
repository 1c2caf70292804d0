from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from library.errors import ConfigError, DataError
from library.rate_distortion import (
    RateCurve,
    RatePoint,
    average,
    bd_rate,
    best_part,
    bytes_saved_at,
    decibels,
    from_compressai_json,
    mean_bd_rate,
    read_kodak_reference,
    to_compressai_json,
    write_csv,
)

RATES, PSNRS = (0.1, 0.2, 0.4, 0.8, 1.6), (28.0, 31.0, 33.5, 36.5, 38.0)


def curve(
    rates: tuple[float, ...] = RATES, values: tuple[float, ...] = PSNRS, *, name: str = "codec", metric: str = "psnr"
) -> RateCurve:
    points = tuple(RatePoint(bpp, {metric: value}) for bpp, value in zip(rates, values, strict=True))
    return RateCurve(name, "painted", points)


def scaled(factor: float) -> RateCurve:
    return curve(tuple(factor * bpp for bpp in RATES))


# --- BD-rate ----------------------------------------------------------------------------------------------------------


def test_a_curve_takes_as_many_bytes_as_itself():
    result = bd_rate(curve(), curve(), "psnr")
    assert result.percent == pytest.approx(0)
    assert (result.overlap, result.share, result.reason) == ((28.0, 38.0), 1.0, "")
    assert bytes_saved_at(curve(), curve(), "psnr", 30.0) == pytest.approx(0)


@pytest.mark.parametrize("factor", [0.5, 0.8, 2.0])
def test_a_curve_of_scaled_rates_differs_by_that_factor_at_every_quality(factor: float):
    assert bd_rate(curve(), scaled(factor), "psnr").percent == pytest.approx(100 * (factor - 1))
    for level in (28.0, 30.3, 38.0):
        assert bytes_saved_at(curve(), scaled(factor), "psnr", level) == pytest.approx(100 * (1 - factor))


def test_settings_far_beyond_the_other_curve_change_nothing():
    longer = curve((*(2 * bpp for bpp in RATES), 20.0, 60.0), (*PSNRS, 55.0, 70.0))
    result = bd_rate(curve(), longer, "psnr")
    # The slope at what was its last point is another, and so a little of the curve below it.
    assert result.percent == pytest.approx(100, abs=2)
    assert (result.overlap, result.share) == ((28.0, 38.0), 1.0)


def test_exchanging_anchor_and_test_inverts_the_ratio_of_their_bytes():
    other = curve((0.07, 0.2, 0.33, 0.9, 1.5), (28.5, 30.5, 33.0, 37.0, 39.0))
    there, back = bd_rate(curve(), other, "psnr"), bd_rate(other, curve(), "psnr")
    assert there.percent is not None
    assert back.percent is not None
    assert (1 + there.percent / 100) * (1 + back.percent / 100) == pytest.approx(1)
    assert there.overlap == back.overlap == (28.5, 38.0)
    assert there.share == back.share == pytest.approx(9.5 / 10)


def test_the_number_is_near_that_of_a_cubic_through_all_points():
    """Bjontegaard's own method, on the points of x265 that the package `bjontegaard` gives as its example."""
    anchor = curve((9487.76, 4593.60, 2486.44, 1358.24), (40.037, 38.615, 36.845, 34.851))
    test = curve((9787.80, 4469.00, 2451.52, 1356.24), (40.121, 38.651, 36.970, 34.987))
    fits = [np.polyfit(c.values("psnr"), np.log10(c.bpp), 3) for c in (anchor, test)]
    low, high = 34.987, 40.037
    areas = [np.diff(np.polyval(np.polyint(fit), (low, high)))[0] for fit in fits]
    cubic = 100 * (10 ** ((areas[1] - areas[0]) / (high - low)) - 1)
    assert bd_rate(anchor, test, "psnr").percent == pytest.approx(cubic, abs=0.5)
    assert cubic < -2


def test_ms_ssim_is_compared_in_decibels():
    values = tuple(1 - 10 ** (-psnr / 10) for psnr in PSNRS)
    anchor, test = curve(values=values, metric="ms_ssim"), curve(RATES, PSNRS)
    other = curve(tuple(1.1 * bpp**1.1 for bpp in RATES), values, metric="ms_ssim")
    psnr_of_other = curve(tuple(1.1 * bpp**1.1 for bpp in RATES), PSNRS)
    assert bd_rate(anchor, other, "ms_ssim").percent == pytest.approx(bd_rate(test, psnr_of_other, "psnr").percent)
    assert decibels("val/ms_ssim.developed", 0.99) == pytest.approx(20)


def test_a_level_is_given_as_the_metric_is_measured():
    values = (0.8, 0.9, 0.96, 0.99)
    anchor = curve(RATES[:4], values, metric="ms_ssim")
    test = curve(tuple(bpp / 4 for bpp in RATES[:4]), values, metric="ms_ssim")
    assert bytes_saved_at(anchor, test, "ms_ssim", 0.95) == pytest.approx(75)
    assert bytes_saved_at(anchor, test, "ms_ssim", 0.995) is None
    assert bytes_saved_at(anchor, test, "ms_ssim", 0.7) is None


def test_at_a_measured_point_the_measured_bytes_are_compared():
    other = curve((0.05, 0.3, 0.35, 0.8, 1.0), (27.0, 31.0, 33.5, 36.5, 39.0))
    assert bytes_saved_at(curve(), other, "psnr", 31.0) == pytest.approx(-50)
    assert bytes_saved_at(curve(), other, "psnr", 33.5) == pytest.approx(12.5)


# --- where nothing can be said ----------------------------------------------------------------------------------------


def test_curves_without_common_quality_have_no_number_but_a_reason():
    high = curve(values=(40.0, 41.0, 42.0, 43.0, 44.0), name="fine")
    result = bd_rate(curve(), high, "psnr")
    assert result.percent is None
    assert result.overlap is None
    assert result.share == 0
    assert "'codec' and 'fine' have no quality in common" in result.reason
    assert str(result).startswith("none: ")


def test_too_small_an_overlap_is_refused_and_still_told():
    high = curve(values=(37.0, 39.0, 41.0, 43.0, 48.0))
    result = bd_rate(curve(), high, "psnr")
    assert (result.percent, result.overlap, result.share) == (None, (37.0, 38.0), pytest.approx(0.1))
    assert "10% of the shorter one's range in common" in result.reason
    assert bd_rate(curve(), high, "psnr", smallest_overlap=0.1).percent is not None


@pytest.mark.parametrize("values", [(28.0, 31.0, 30.9, 32.0, 33.0), (28.0, 31.0, 31.0, 32.0, 33.0)])
def test_a_curve_that_does_not_rise_has_no_number_and_the_place_is_named(values: tuple[float, ...]):
    worse = curve(values=values, name="noisy")
    for result in (bd_rate(curve(), worse, "psnr"), bd_rate(worse, curve(), "psnr")):
        assert result.percent is None
        assert "'noisy' does not rise: psnr is 31 at 0.2 bpp" in result.reason
    assert bytes_saved_at(curve(), worse, "psnr", 30.0) is None


def test_two_settings_of_equal_rate_do_not_rise():
    assert "does not rise" in bd_rate(curve(), curve((0.1, 0.2, 0.2, 0.8, 1.6)), "psnr").reason


def test_three_points_are_no_curve():
    short = curve(RATES[:3], PSNRS[:3], name="short")
    assert "'short' has 3 points, 4 are needed" in bd_rate(short, curve(), "psnr").reason


def test_a_lossless_point_has_no_decibels_and_no_warning():
    lossless = curve(values=(0.9, 0.95, 0.97, 0.99, 1.0), metric="ms_ssim")
    assert "without a finite dB" in bd_rate(lossless, lossless, "ms_ssim").reason


def test_only_psnr_and_ms_ssim_are_compared_and_only_where_measured():
    with pytest.raises(ConfigError, match="not in 'mse'"):
        bd_rate(curve(metric="mse"), curve(metric="mse"), "mse")
    with pytest.raises(DataError, match=r"curve 'codec' has no psnr.linear; measured were: psnr"):
        bd_rate(curve(), curve(), "psnr.linear")


# --- curves -----------------------------------------------------------------------------------------------------------


def test_points_lie_by_rising_rate_however_they_were_given():
    backwards = curve(RATES[::-1], PSNRS[::-1])
    assert backwards == curve()
    assert backwards.values("psnr") == list(PSNRS)


def test_points_that_cannot_be_a_curve_are_refused():
    with pytest.raises(DataError, match="'codec' has no points"):
        RateCurve("codec", "", ())
    with pytest.raises(DataError, match="has the rate 0 bpp"):
        curve((0.0, 1.0), (20.0, 30.0))
    with pytest.raises(DataError, match=r"psnr is NaN at 0.1 bpp"):
        curve((0.1,), (math.nan,))
    with pytest.raises(DataError, match="ms_ssim is not measured at all points"):
        RateCurve("codec", "", (RatePoint(0.1, {"psnr": 20.0}), RatePoint(0.2, {"psnr": 21.0, "ms_ssim": 0.9})))


def test_the_best_part_of_a_curve_that_begins_to_keep_noise_ends_at_its_best():
    noisy = curve(values=(28.0, 31.0, 33.0, 32.0, 30.0))
    assert best_part(noisy, "psnr") == curve(RATES[:3], (28.0, 31.0, 33.0))
    assert best_part(curve(), "psnr") == curve()


def test_the_best_part_can_always_be_compared():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rates, values = rng.integers(1, 9, 12) / 4, rng.integers(20, 40, 12)
        part = best_part(curve(tuple(map(float, rates)), tuple(map(float, values))), "psnr")
        assert (np.diff(part.bpp) > 0).all()
        assert (np.diff(part.values("psnr")) > 0).all()
        dominated = [
            any(r <= rate and v >= value and (r, v) != (rate, value) for r, v in zip(rates, values, strict=True))
            for rate, value in zip(part.bpp, part.values("psnr"), strict=True)
        ]
        assert sum(dominated) == 0


def test_the_average_of_equal_curves_is_that_curve_and_of_others_the_mean_by_setting():
    assert average([curve(), curve()]) == curve()
    mean = average([curve(), curve(tuple(3 * bpp for bpp in RATES), tuple(psnr + 2 for psnr in PSNRS))])
    np.testing.assert_allclose(mean.bpp, np.multiply(RATES, 2))
    np.testing.assert_allclose(mean.values("psnr"), np.add(PSNRS, 1))
    with pytest.raises(DataError, match=r"'codec' has 3 points of psnr, but 'codec' has 5"):
        average([curve(), curve(RATES[:3], PSNRS[:3])])


def test_the_mean_of_bd_rates_weighs_images_and_the_bd_rate_of_the_mean_curve_weighs_bytes():
    """Half the bytes on an image of few bytes, and as many on one of ten times more."""
    large = tuple(10 * bpp for bpp in RATES)
    anchors, tests = [curve(), curve(large)], [scaled(0.5), curve(large)]
    assert mean_bd_rate(anchors, tests, "psnr").percent == pytest.approx(-25)
    of_mean = bd_rate(average(anchors), average(tests), "psnr").percent
    assert of_mean == pytest.approx(100 * (10.5 / 11 - 1))


def test_images_without_a_bd_rate_are_left_out_of_the_mean_and_counted():
    broken = curve(values=PSNRS[::-1])
    result = mean_bd_rate([curve(), curve()], [scaled(0.5), broken], "psnr")
    assert result.percent == pytest.approx(-50)
    assert str(result) == "-50.0 %, mean over 1 of 2 images"
    nothing = mean_bd_rate([curve()], [broken], "psnr")
    assert nothing.percent is None
    assert "does not rise" in str(nothing)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_curve_goes_through_compressai_json_and_back():
    points = tuple(
        RatePoint(bpp, {"psnr": psnr, "ms_ssim": 1 - bpp / 8, "psnr.linear": psnr + 1, "encoding_time": 0.5})
        for bpp, psnr in zip(RATES, PSNRS, strict=True)
    )
    original = RateCurve("stillgrain", "12 raws", points)
    content = json.loads(json.dumps(to_compressai_json(original)))
    assert content["name"] == "stillgrain"
    assert content["results"].keys() == {"bpp", "psnr-rgb", "ms-ssim-rgb", "psnr.linear", "encoding_time"}
    assert from_compressai_json(content) == original


def test_what_json_cannot_hold_is_left_out_of_it():
    lossless = RateCurve("JPEG-LS", "", (RatePoint(9.0, {"psnr": math.inf, "ms_ssim": 1.0}),))
    content = to_compressai_json(lossless)
    assert content["results"] == {"bpp": [9.0], "ms-ssim-rgb": [1.0]}
    json.dumps(content, allow_nan=False)


def test_results_in_compressai_older_spelling_are_read():
    """The first two points of its mbt2018-mean on Kodak, 8-bit decodes."""
    results = {"psnr": [27.6958, 29.3535], "ms-ssim": [0.91776, 0.94298], "bpp": [0.12392, 0.19798]}
    read = from_compressai_json({"name": "mbt2018-mean-8bit", "description": "Inference (ans)", "results": results})
    assert read.points[0] == RatePoint(0.12392, {"psnr": 27.6958, "ms_ssim": 0.91776})


@pytest.mark.parametrize(
    "content",
    [
        {"results": {"bpp": [1.0]}},
        {"name": "x"},
        {"name": "x", "results": {"psnr": [1.0]}},
        {"name": "x", "results": {"bpp": [1.0, 2.0], "psnr": [30.0]}},
        {"name": "x", "results": {"bpp": [1.0], "psnr": ["high"]}},
    ],
)
def test_what_is_no_curve_is_refused(content: dict):
    with pytest.raises(DataError, match="no rate-distortion curve in CompressAI's form"):
        from_compressai_json(content)


def test_a_table_has_a_row_a_point_and_a_column_a_metric_of_any_curve(tmp_path: Path):
    other = curve((0.5,), (0.97,), name="other, with a comma", metric="ms_ssim")
    write_csv(tmp_path / "curves.csv", [curve(), other])
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["curve", "bpp", "psnr", "ms_ssim"]
    assert [float(row["bpp"]) for row in rows] == [*RATES, 0.5]
    assert rows[-1] == {"curve": "other, with a comma", "bpp": "0.5", "psnr": "", "ms_ssim": "0.97"}


def test_a_file_that_is_no_reference_is_refused_by_name(tmp_path: Path):
    (tmp_path / "list.json").write_text("[1, 2]")
    for name in ("list.json", "missing.json"):
        with pytest.raises(DataError, match=rf"{name}: holds no reference curves"):
            read_kodak_reference(tmp_path / name)


@pytest.fixture(scope="module")
def kodak(shared_data: Path) -> dict[str, RateCurve]:
    path = shared_data.parent / "handbook" / "kodak_rd_reference.json"
    if not path.is_file():
        pytest.skip(f"needs the published Kodak lines, and {path} does not exist")
    return {curve.name: curve for curve in read_kodak_reference(path)}


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        ("compressai mbt2018-mean [mse]", 21.3),
        ("compressai bmshj2018-factorized [mse]", 68.1),
        ("compressai cheng2020-anchor [mse]", 3.68),
        ("jpeg", 208.5),
    ],
)
def test_published_kodak_lines_differ_from_vtm_as_is_known(kodak: dict[str, RateCurve], name: str, percent: float):
    """The known numbers were computed apart from this code, with PCHIP, from the same points."""
    assert bd_rate(kodak["vtm"], kodak[name], "psnr").percent == pytest.approx(percent, abs=0.06)


def test_published_lines_say_where_they_come_from(kodak: dict[str, RateCurve]):
    assert "Kodak" in kodak["vtm"].description
    assert kodak["vtm"].metrics == ["psnr", "ms_ssim"]
    assert kodak["HPCM-Base [mse]"].metrics == ["psnr"]
    assert all(math.isfinite(value) for line in kodak.values() for value in line.values("psnr"))
