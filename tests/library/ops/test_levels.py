from __future__ import annotations

import numpy as np
import pytest
import torch

from library.ops.levels import denormalize_levels, normalize_levels, quantize

BLACK = torch.tensor([[512.0, 514.0], [511.5, 520.0]])
WHITE = 16383.0
sizes = pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])


@sizes
def test_black_becomes_zero_and_white_becomes_one_at_every_site(size: tuple[int, int]):
    height, width = size
    black = BLACK.repeat(4, 4)[:height, :width]
    assert (normalize_levels(black, BLACK, WHITE) == 0).all()
    assert (normalize_levels(torch.full(size, WHITE), BLACK, WHITE) == 1).all()


def test_levels_keep_noise_below_black_and_counts_above_white():
    assert (normalize_levels(torch.full((2, 2), 500.0), BLACK, WHITE) < 0).all()
    assert (normalize_levels(torch.full((2, 2), 16384.0), BLACK, WHITE) > 1).all()


def test_the_mean_of_noise_around_black_is_zero():
    noise = 20 * torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    scene = normalize_levels(512 + noise, torch.full((2, 2), 512.0), WHITE)
    assert abs(scene.mean().item()) < 4 * 20 / 200 / (WHITE - 512)


@sizes
def test_every_16_bit_count_survives_levels_and_back(size: tuple[int, int]):
    counts = torch.randint(0, 65536, (2, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    scene = normalize_levels(counts, BLACK, 65535.0)
    assert scene.dtype == torch.float32
    assert scene.shape == counts.shape
    assert torch.equal(quantize(denormalize_levels(scene, BLACK, 65535.0)), counts)


def test_levels_of_any_batch_are_those_of_each_image():
    counts = 16000 * torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    scene = normalize_levels(counts, BLACK, WHITE)
    assert torch.equal(scene[1, 2], normalize_levels(counts[1, 2], BLACK, WHITE))


def test_levels_shift_with_the_mosaic_by_a_whole_tile():
    counts = 16000 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalize_levels(counts[2:, 4:], BLACK, WHITE), normalize_levels(counts, BLACK, WHITE)[2:, 4:])


def test_a_black_level_at_white_is_refused():
    for convert in (normalize_levels, denormalize_levels):
        with pytest.raises(ValueError, match="not below white_level 512"):
            convert(torch.zeros(2, 2), BLACK, 512.0)


def test_counts_are_rounded_to_the_nearest_and_clipped_to_16_bits():
    values = torch.tensor([-3.0, -0.4, 0.6, 1.5, 2.5, 1023.49, 65534.6, 65535.6, 1e9, float("inf")])
    stored = quantize(values)
    assert stored.tolist() == [0, 0, 1, 2, 2, 1023, 65535, 65535, 65535, 65535]
    assert stored.numpy().dtype == np.uint16
