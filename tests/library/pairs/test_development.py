from __future__ import annotations

import numpy as np
import pytest
import torch

from library.pairs.development import Development, draw_development

NOTHING = Development(gains=None, tone=None, edges=None, gamma=None, contrast=None, unsharp=None)


def picture(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, (48, 64), mode="bilinear")[0] * 0.6 + 0.02


@pytest.mark.parametrize("seed", range(20))
def test_a_development_is_a_picture_and_the_same_for_the_same_seed(seed: int):
    clean = picture(seed)
    developed = draw_development(clean, np.random.default_rng(seed))(clean)
    assert developed.shape == clean.shape
    assert developed.isfinite().all()
    assert 0 <= developed.min() <= developed.max() <= 1
    assert torch.equal(developed, draw_development(clean, np.random.default_rng(seed))(clean))


def test_both_pictures_get_the_same_so_equal_places_stay_equal():
    clean = picture()
    noisy = clean.clone()
    noisy[:, :, :20] += 0.05 * torch.randn(3, 48, 20, generator=torch.Generator().manual_seed(1))
    develop = draw_development(clean, np.random.default_rng(3))
    difference = (develop(noisy) - develop(clean)).abs().amax(dim=(0, 1))
    assert difference[:20].max() > 1e-3
    assert difference[25:].max() == 0  # steps look three pixels far


def test_what_lies_outside_of_the_picture_is_clipped_and_finite():
    clean = picture()
    wild = clean * 8 - 2
    for seed in range(10):
        developed = draw_development(clean, np.random.default_rng(seed))(wild)
        assert developed.isfinite().all()


def test_a_black_picture_is_developed_too():
    black = torch.zeros(3, 16, 16)
    for seed in range(10):
        assert draw_development(black, np.random.default_rng(seed))(black).isfinite().all()


def test_every_draw_takes_as_many_random_numbers():
    after = []
    for seed_picture in (0, 1):
        rng = np.random.default_rng(7)
        draw_development(picture(seed_picture), rng)
        after.append(rng.random())
    assert after[0] == after[1]


def test_no_step_is_the_identity_and_each_step_changes_something():
    clean = picture()
    assert torch.equal(NOTHING(clean), clean)
    for name, value in {
        "gains": (1.2, 1.0, 0.8),
        "tone": (0.7, 0.0, 0.9),
        "edges": 0.3,
        "gamma": 2.0,
        "contrast": (8.0, 0.5),
        "unsharp": (5, 1.0),
    }.items():
        changed = Development(**{**NOTHING.__dict__, name: value})(clean)
        assert not torch.allclose(changed, clean, atol=1e-4), name


def test_grey_world_makes_the_clean_pictures_channels_equally_bright():
    clean = picture() * torch.tensor([0.5, 1.0, 0.3])[:, None, None]
    rng = np.random.default_rng(0)
    gains = next(d.gains for d in (draw_development(clean, rng) for _ in range(20)) if d.gains is not None)
    means = clean.mean(dim=(1, 2)) * torch.tensor(gains)
    torch.testing.assert_close(means, means.mean().expand(3), rtol=1e-4, atol=0)
