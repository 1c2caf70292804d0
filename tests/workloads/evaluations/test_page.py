from __future__ import annotations

import re
from pathlib import Path

import pytest

from library.errors import DataError
from tests.evaluations import IMAGES, write_evaluation
from tests.pages import Page
from workloads.evaluations.page import write_evaluation_page
from workloads.evaluations.results import Evaluation


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return write_evaluation(tmp_path_factory.mktemp("page") / "evaluation")


@pytest.fixture(scope="module")
def page(evaluation: Evaluation) -> Page:
    return Page(Path(write_evaluation_page(evaluation)))


def test_the_page_refers_to_nothing_outside_itself(evaluation: Evaluation, page: Page):
    text = evaluation.page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//www|url\((?!#c)|@import|fetch\(|XMLHttpRequest", text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))


def test_whoever_cannot_see_a_picture_or_chart_is_told_what_it_is(page: Page):
    assert len(page.images) == 2 * 5
    assert all(image["alt"] for image in page.images)
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) == 3 + 3
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_names_in_the_page_are_given_once(page: Page):
    """Charts of one look have names of their own for the same glyphs."""
    names = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    used = {name for _, attributes in page.tags if (name := (attributes.get("xlink:href") or "").removeprefix("#"))}
    assert len(names) == len(set(names))
    assert used <= set(names)


def test_charts_take_their_colours_from_the_page(evaluation: Evaluation):
    charts = re.findall(r"<svg.*?</svg>", evaluation.page.read_text(encoding="utf-8"), re.DOTALL)
    assert charts
    for chart in charts:
        assert "var(--" in chart
        assert not re.search(r"#[0-9a-f]{6}\b(?!-)", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", chart))


def test_the_summary_says_what_the_intervals_allow(page: Page):
    assert "first and second against the input and 1 classical denoiser, on 2 images of 2 suites." in page.text
    assert "first is 7.25 dB [7.00, 7.50] above the input in developed PSNR." in page.text
    assert "first is 2.25 dB [2.25, 2.25] above second. Of 2 scenes all of this may be chance." in page.text
    assert "No image could be compared." in page.text
    assert "Not measured: held out, broken_0: is truncated" in page.text
    assert "Without first, which takes mosaics." in page.text


def test_each_table_has_its_best_in_bold_and_numbers_to_sort_by(page: Page):
    assert page.bold[:3] == ["0.9100", "35.50", "27.25"]
    values = [a["data-value"] for tag, a in page.tags if tag == "td" and "data-value" in a]
    assert values
    assert all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value or "") for value in values)


def test_the_curve_names_its_buckets(page: Page):
    assert "≤ 0.72 (1, mean 0.650), ≥ 0 (2, mean 0.700)" in page.text


def test_best_and_worst_images_are_shown_with_sliders_between_methods(evaluation: Evaluation, page: Page):
    suite = evaluation.suites["held out"]
    assert [(picked.image, picked.why) for picked in suite.picked] == [
        (IMAGES[0], "best"),
        (IMAGES[1], "median and worst"),
    ]
    assert IMAGES[0] in page.texts
    strips = [a["data-pairs"] for _, a in page.tags if a.get("class") == "strip"]
    assert strips == ["[[0, 2], [1, 2]]"] * 2


def test_an_evaluation_that_was_moved_gives_the_same_page_but_for_its_name(evaluation: Evaluation, tmp_path: Path):
    before = evaluation.page.read_bytes()
    moved = evaluation.output.rename(tmp_path / "evaluation")
    try:
        assert Path(write_evaluation_page(Evaluation.read(moved))).read_bytes().replace(
            str(moved).encode(), str(evaluation.output).encode()
        ) == before  # fmt: skip
    finally:
        moved.rename(evaluation.output)


def test_a_folder_without_an_evaluation_is_refused_in_words(tmp_path: Path):
    with pytest.raises(DataError, match="make one with `workload: evaluate`"):
        Evaluation.read(tmp_path)
