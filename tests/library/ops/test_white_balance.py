from __future__ import annotations

import pytest
import torch

from library.ops.cfa import pack_cfa, sample_cfa
from library.ops.white_balance import (
    apply_white_balance,
    apply_white_balance_packed,
    normalize_gains,
    remove_white_balance,
    remove_white_balance_packed,
)

GAINS = torch.tensor([2.0, 1.0, 1.5])


def random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


def test_white_becomes_white_under_its_own_gains():
    white = (1 / GAINS)[:, None, None].expand(3, 4, 4)
    assert (apply_white_balance(white, GAINS) == 1).all()


def test_white_balance_scales_each_colour_and_clips_nothing():
    rgb = torch.tensor([-0.1, 0.5, 0.8])[:, None, None]
    assert apply_white_balance(rgb, GAINS).flatten().tolist() == pytest.approx([-0.2, 0.5, 1.2])


def test_removing_white_balance_undoes_applying_it():
    rgb, packed = random(2, 3, 4, 6), random(2, 4, 4, 6)
    torch.testing.assert_close(remove_white_balance(apply_white_balance(rgb, GAINS), GAINS), rgb)
    torch.testing.assert_close(remove_white_balance_packed(apply_white_balance_packed(packed, GAINS), GAINS), packed)


def test_balancing_the_picture_or_its_packed_mosaic_is_the_same():
    rgb = random(2, 3, 4, 6)
    gains = torch.stack([GAINS, GAINS.flip(0)])
    ours = apply_white_balance_packed(pack_cfa(sample_cfa(rgb)), gains)
    assert torch.equal(ours, pack_cfa(sample_cfa(apply_white_balance(rgb, gains))))


def test_normalized_gains_are_the_same_balance_with_one_as_the_smallest():
    gains = torch.stack([GAINS, 1024 * GAINS.flip(0), torch.tensor([0.4, 1.0, 0.8])])
    assert normalize_gains(gains).tolist() == [[2.0, 1.0, 1.5], [1.5, 1.0, 2.0], [1.0, 2.5, 2.0]]


def test_float64_gains_leave_the_picture_float32():
    assert apply_white_balance(random(3, 2, 2), GAINS.double()).dtype == torch.float32


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_gains_must_be_positive_and_finite(bad: float):
    gains = torch.tensor([1.0, bad, 1.0])
    with pytest.raises(ValueError, match="positive and finite"):
        normalize_gains(gains)
    for op, planes in (
        (apply_white_balance, 3),
        (remove_white_balance, 3),
        (apply_white_balance_packed, 4),
        (remove_white_balance_packed, 4),
    ):
        with pytest.raises(ValueError, match="positive and finite"):
            op(torch.ones(planes, 2, 2), gains)


def test_a_packed_mosaic_is_not_taken_for_a_picture():
    with pytest.raises(ValueError, match="4 planes cannot take 3 gains"):
        apply_white_balance(torch.ones(4, 2, 2), GAINS)
    with pytest.raises(ValueError, match="3 planes cannot take 4 gains"):
        apply_white_balance_packed(torch.ones(3, 2, 2), GAINS)
