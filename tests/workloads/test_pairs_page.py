"""The page of prepared pairs: what it says, what it shows, and that it can be mailed."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.pairs.index import write_index
from library.pairs.store import picture_file
from tests.pages import Page
from tests.prepared_pairs import FAILED, of_pictures, write_pair
from workloads.pairs_page import write_pairs_page

SIZE = (220, 300)
LABELS = ["Clean, all of it", "What counts", "Clean", "Noisy, after the shift", "Difference"]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Three scenes whose shifts are 0, even and odd, exactly as noted; what a file is called is nobody's friend."""
    pairs = [
        replace(write_pair(tmp_path, shift, name=name, size=SIZE), raw_gain=1.0, rgb_gain=1.0, flags=flags)
        for name, shift, flags in (("a", (0, 0), ()), ("b <i>", (6, -8), ("dark",)), ("c", (-3, 5), ()))
    ]
    write_index(tmp_path, [*pairs, FAILED])
    return tmp_path


def pictures(page: Page) -> list[tuple[str, np.ndarray]]:
    found = []
    for image in page.images:
        source = str(image["src"])
        content = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"), validate=True)
        found.append((str(image["alt"]), np.asarray(Image.open(io.BytesIO(content))).astype(float)))
    return found


def test_it_says_what_there_is_and_why_a_pair_failed_and_loads_nothing(prepared: Path):
    summary = write_pairs_page(prepared)
    text = summary.page.read_text()
    page = Page(summary.page)
    assert "3 pairs of a clean and a noisy image and 0 of clean ones, of 4 scenes; 1 pairs failed." in page.text
    assert "a broken.arw: is truncated" in page.text
    assert "b <i>" in page.text
    assert "<i>" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    for name, groups in summary.groups.items():
        assert f"By {name}" in page.text
        assert all(group.name in page.text for group in groups)


def test_pictures_are_small_and_the_flagged_pair_comes_first(prepared: Path):
    page = Page(write_pairs_page(prepared).page)
    shown = pictures(page)
    assert max(max(picture.shape) for _, picture in shown) <= 256
    labels = [label for label, _ in shown]
    assert labels[:4] == LABELS[:4]
    assert labels[4:6] == ["Difference before the shift", "Difference after +6 -8 px"]
    assert labels.count("Difference") == 1  # of the pair that needs no shift
    assert len(labels) == 2 * 6 + 5


def test_a_right_shift_takes_the_difference_away_at_every_sign_and_parity(prepared: Path):
    """The scene is smooth and has no noise, so what is left is the rounding."""
    shown = pictures(Page(write_pairs_page(prepared).page))
    before = [picture.mean() for label, picture in shown if label == "Difference before the shift"]
    after = [picture.mean() for label, picture in shown if label.startswith("Difference after")]
    assert len(before) == len(after) == 2
    for wrong, right in zip(before, after, strict=True):
        assert right < 0.2 * wrong


def test_what_does_not_count_is_red_and_nothing_else(prepared: Path):
    index = replace(write_pair(prepared, (2, 2), name="half", size=SIZE), raw_gain=1.0, rgb_gain=1.0)
    shared = index.overlap
    mask = np.ones((shared.height, shared.width), bool)
    mask[:, shared.width // 2 :] = False
    np.save(prepared / index.mask, np.packbits(mask, axis=1))
    write_index(prepared, [index])
    (picture,) = (p for label, p in pictures(Page(write_pairs_page(prepared).page)) if label == "What counts")
    redness = picture[..., 0] - picture[..., 1]
    middle = picture.shape[1] // 2
    assert np.quantile(redness[2:-2, middle + 8 : -2], 0.1) > 60  # the frame is white
    assert np.abs(redness[2:-2, 2 : middle - 8]).max() < 12


def test_no_more_pairs_are_shown_than_asked_for(prepared: Path):
    assert len(pictures(Page(write_pairs_page(prepared, most=1).page))) == 6
    assert not pictures(Page(write_pairs_page(prepared, most=0).page))


def test_a_pair_whose_files_are_gone_is_named_and_harms_no_other(prepared: Path):
    (prepared / "arrays/b <i>").rename(prepared / "arrays/elsewhere")
    page = Page(write_pairs_page(prepared).page)
    assert "cannot be read" in page.text
    assert len(pictures(page)) == 6 + 5


def test_pictures_of_x_trans_pairs_of_odd_sizes_are_shown(tmp_path: Path):
    rng = np.random.default_rng(0)
    pair = write_pair(tmp_path, (3, -1), name="x", size=(180, 190))
    arrays = {sha: rng.random((181, 191, 3)).astype(np.float16) for sha in (pair.gt_sha256, pair.f_sha256)}
    for sha, array in arrays.items():
        np.save(tmp_path / picture_file("x", sha), array)
    size = {"height": 181, "width": 191, "f_height": 181, "f_width": 191}
    pair = of_pictures(pair, target=picture_file("x", pair.gt_sha256), **size)
    shared = pair.overlap
    np.save(tmp_path / pair.mask, np.packbits(np.ones((shared.height, shared.width), bool), axis=1))
    write_index(tmp_path, [pair])
    assert len(pictures(Page(write_pairs_page(tmp_path).page))) == 6
