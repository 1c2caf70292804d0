from __future__ import annotations

import itertools

import numpy as np
import pytest

from library.pairs.shift import overlap

SHIFTS = list(itertools.product(range(-7, 8), range(-7, 8)))


def shifted_views(shift: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two cuts of one large scene, whose pixels are all different, such that gt[y + dy, x + dx] is f[y, x]."""
    scene = np.arange(60 * 60).reshape(60, 60)
    dy, dx = shift
    top, left = 20, 20
    gt = scene[top : top + size[0], left : left + size[1]]
    f = scene[top + dy : top + dy + size[0], left + dx : left + dx + size[1]]
    return gt, f


def test_what_is_left_of_both_images_is_the_same_for_every_sign_and_parity() -> None:
    for shift in SHIFTS:
        gt, f = shifted_views(shift, (24, 26))
        shared = overlap(shift, gt.shape, f.shape)
        assert np.array_equal(gt[shared.gt], f[shared.f])
        assert gt[shared.gt].shape == (shared.height, shared.width)


def test_what_is_left_of_a_mosaic_starts_at_red_and_has_whole_tiles() -> None:
    for shift in SHIFTS:
        shared = overlap(shift, (24, 26), (24, 26))
        assert (shared.f_top % 2, shared.f_left % 2, shared.height % 2, shared.width % 2) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("shift", "gt_start", "f_start", "length"),
    [(0, 0, 0, 24), (1, 1, 0, 22), (2, 2, 0, 22), (3, 3, 0, 20), (-1, 1, 2, 22), (-2, 0, 2, 22), (-3, 1, 4, 20)],
)
def test_an_odd_shift_costs_one_more_line_of_each(shift: int, gt_start: int, f_start: int, length: int) -> None:
    """The mask's first row is clean row max(s, 0), and one more where s is odd and below 0."""
    shared = overlap((shift, 0), (24, 24), (24, 24))
    assert (shared.gt_top, shared.f_top, shared.height) == (gt_start, f_start, length)


def test_pictures_lose_no_more_than_the_shift() -> None:
    shared = overlap((-3, 5), (24, 26), (24, 26), lattice=1)
    assert (shared.gt_top, shared.f_top, shared.height) == (0, 3, 21)
    assert (shared.gt_left, shared.f_left, shared.width) == (5, 0, 21)


def test_images_of_unlike_sizes_share_what_both_have() -> None:
    gt, f = shifted_views((3, -5), (24, 26))
    f = f[:-4, :-6]
    shared = overlap((3, -5), gt.shape, f.shape)
    assert np.array_equal(gt[shared.gt], f[shared.f])
    assert shared.height > 0


@pytest.mark.parametrize("shift", [(24, 0), (-24, 0), (0, 25), (0, -100)])
def test_a_shift_that_leaves_nothing_is_refused(shift: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="nothing"):
        overlap(shift, (24, 26), (24, 26))
