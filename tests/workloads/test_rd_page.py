from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.errors import ConfigError
from library.rate_distortion import RateCurve, RatePoint, from_compressai_json
from workloads.rd_page import _spread, bd_table, curves_png, write_curves


def curve(name: str, factor: float = 1.0, *, falls: bool = False) -> RateCurve:
    values = [28.0, 31.0, 33.5, 36.5, 35.0 if falls else 38.0]
    points = [
        RatePoint(factor * bpp, {"psnr": value, "ms_ssim": 1 - 10 ** (-value / 20)})
        for bpp, value in zip((0.1, 0.2, 0.4, 0.8, 1.6), values, strict=True)
    ]
    return RateCurve(name, "painted", tuple(points))


def test_a_chart_is_twice_as_fine_as_the_page_and_the_same_for_the_same_curves():
    draw = lambda: curves_png([curve("a"), curve("b", 0.5)], "psnr", ours={"b"}, label="PSNR, developed")  # noqa: E731
    content = draw()
    assert content == draw()
    assert Image.open(io.BytesIO(content)).size == (1800, 1120)


def test_every_part_of_a_chart_shows():
    curves = [curve("a"), curve("b", 0.5)]
    plain = curves_png(curves, "ms_ssim", ours=set(), label="MS-SSIM")
    variants = [
        curves_png(curves, "ms_ssim", ours={"b"}, label="MS-SSIM"),
        curves_png(curves, "ms_ssim", ours=set(), label="MS-SSIM, developed"),
        curves_png(curves, "ms_ssim", ours=set(), label="MS-SSIM", levels={"noisy": 0.97}),
        curves_png(curves, "ms_ssim", ours=set(), label="MS-SSIM", overlap=(15.0, 17.0)),
        curves_png(curves, "ms_ssim", ours=set(), label="MS-SSIM", rate="bits per pixel"),
        curves_png(curves, "ms_ssim", ours=set(), label="MS-SSIM", dashed={"a"}),
    ]
    assert len({plain, *variants}) == 7


def test_a_lossless_point_is_left_out_and_nothing_else_refused():
    lossless = RateCurve("JPEG-LS", "", (RatePoint(9.0, {"psnr": np.inf}),))
    assert curves_png([curve("a"), lossless], "psnr", ours=set(), label="PSNR")
    with pytest.raises(ConfigError, match="no curve has a point with a finite psnr"):
        curves_png([lossless], "psnr", ours=set(), label="PSNR")


def test_names_keep_their_order_and_distance_inside_the_chart_and_move_no_more_than_they_must():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 15):
        wanted = sorted(rng.uniform(0.3, 0.6, count))
        places = _spread(wanted, 0.05)
        assert (np.diff(places) >= 0.05 - 1e-9).all()
        assert min(places) >= 0
        assert max(places) <= 1 + 1e-9
    assert _spread([0.1, 0.5, 0.9], 0.05) == pytest.approx([0.1, 0.5, 0.9])
    assert _spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert _spread([0.99, 1.0], 0.1) == pytest.approx([0.9, 1.0])


def test_the_table_compares_best_parts_of_ours_with_every_other():
    table = bd_table([curve("a"), curve("b", falls=True), curve("ours", 0.5, falls=True)], {"ours"}, "psnr")
    assert table.keys() == {("a", "ours"), ("b", "ours")}
    assert [result.percent for result in table.values()] == pytest.approx([-50, -50], abs=1)


def test_files_hold_the_curves(tmp_path: Path):
    curves = [curve("JPEG XL"), curve("ours, q 1/2", 0.5)]
    written = write_curves(tmp_path, curves, ours={"ours, q 1/2"}, labels={"psnr": "PSNR, developed"})
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(
        p.relative_to(tmp_path).as_posix() for p in written
    )
    assert {p.name for p in written} == {"curves.csv", "psnr.png", "JPEG-XL.json", "ours-q-1-2.json"}
    assert from_compressai_json(json.loads((tmp_path / "curves" / "JPEG-XL.json").read_text())) == curves[0]
    with (tmp_path / "curves.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 10


def test_curves_that_would_share_a_file_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="two curves would be one file"):
        write_curves(tmp_path, [curve("a b"), curve("a/b")], ours=set(), labels={})
    assert not list(tmp_path.iterdir())
