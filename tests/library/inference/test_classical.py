from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch

from library.errors import ConfigError
from library.inference import classical
from library.inference.classical import (
    BASELINES,
    Baseline,
    Best,
    best_classical,
    check_available,
    classical_picture,
)
from library.metrics import compare_camera_rgb
from library.ops.noise import add_poisson_gaussian

SIDE = 162
MATRIX = torch.tensor([[[0.85, -0.25, -0.07], [-0.5, 1.35, 0.2], [-0.1, 0.2, 0.6]]], dtype=torch.float64)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On pictures this small threads only wait for each other, which takes seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def smooth_scene() -> torch.Tensor:
    """(1, 3, SIDE, SIDE) camera RGB with gentle shading and one edge."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    picture = 0.2 + 0.1 * torch.sin(4 * rows) + 0.3 * (columns > 0.5)
    return torch.stack([0.5 * picture, picture, 0.6 * picture])[None]


@pytest.fixture(scope="module")
def noisy() -> torch.Tensor:
    return add_poisson_gaussian(smooth_scene(), 4e-3, 1e-4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found(noisy: torch.Tensor) -> dict[Baseline, Best]:
    return best_classical(noisy, smooth_scene(), torch.ones(1, 1, SIDE, SIDE), MATRIX)


@pytest.mark.parametrize("method", BASELINES)
def test_at_its_best_a_method_is_never_worse_than_the_noisy_picture_and_better_on_a_smooth_one(
    found: dict[Baseline, Best], noisy: torch.Tensor, method: Baseline
):
    untouched = compare_camera_rgb(noisy, smooth_scene(), torch.ones(1, 1, SIDE, SIDE), MATRIX)
    best = found[method]
    assert best.metrics.keys() == untouched.keys() == best.parameters.keys()
    assert all(best.metrics[name] >= untouched[name] for name in untouched)
    assert best.metrics["psnr.linear"] > untouched["psnr.linear"] + 6
    assert best.metrics["psnr"] > untouched["psnr"] + 6


@pytest.mark.parametrize("method", BASELINES)
def test_the_picture_is_the_one_of_the_best_developed_psnr(found: dict[Baseline, Best], method: Baseline):
    best = found[method]
    measured = compare_camera_rgb(best.picture, smooth_scene(), torch.ones(1, 1, SIDE, SIDE), MATRIX)
    assert measured["psnr"] == best.metrics["psnr"]
    assert all(measured[name] <= best.metrics[name] for name in measured)


def test_the_parameters_that_were_found_give_the_picture_again(found: dict[Baseline, Best], noisy: torch.Tensor):
    mask = torch.ones(1, 1, SIDE, SIDE)
    for method, best in found.items():
        again = classical_picture(method, best.parameters["psnr"], noisy, smooth_scene(), mask)
        assert torch.equal(again, best.picture)
    assert classical_picture("nlm", {}, noisy, smooth_scene(), mask) is noisy


def test_whoever_judges_otherwise_gets_the_best_by_that(noisy: torch.Tensor):
    def judge(*pictures: torch.Tensor) -> dict[str, float]:
        return {"psnr": -float((pictures[0] - noisy).abs().mean())}

    best = best_classical(
        noisy, smooth_scene(), torch.ones(1, 1, SIDE, SIDE), MATRIX, methods=["gaussian"], compare=judge
    )["gaussian"]
    assert best.metrics == {"psnr": 0.0}
    assert best.picture is noisy


bm3d_is_installed = importlib.util.find_spec("bm3d") is not None


@pytest.mark.skipif(bm3d_is_installed, reason="bm3d is installed here, so that nobody has to be told how to get it")
def test_bm3d_is_refused_where_it_is_not_installed_with_its_licence_before_anything_is_filtered(noisy: torch.Tensor):
    mask = torch.ones(1, 1, SIDE, SIDE)
    with pytest.raises(ConfigError, match=r"'bm3d' needs the package bm3d.*non-commercial use only.*pip install bm3d"):
        best_classical(noisy, smooth_scene(), mask, MATRIX, methods=["nlm", "bm3d"])
    with pytest.raises(ConfigError, match=r"leave bm3d out of the baselines: gaussian, bilateral, wavelet, nlm"):
        check_available(["bm3d"])


@pytest.mark.skipif(
    not bm3d_is_installed, reason="needs the package bm3d, which is licensed for non-commercial use only"
)
def test_bm3d_denoises_better_than_a_gaussian(noisy: torch.Tensor, found: dict[Baseline, Best]):
    mask = torch.ones(1, 1, SIDE, SIDE)
    best = best_classical(noisy, smooth_scene(), mask, MATRIX, methods=["bm3d"])["bm3d"]
    assert all(best.metrics[name] > found["gaussian"].metrics[name] for name in best.metrics)


def test_bm3d_is_never_asked_for_by_default_nor_required_by_this_package():
    assert set(get_args(Baseline)) - set(BASELINES) == {"bm3d"}
    check_available(BASELINES)
    declared = importlib.metadata.requires("stillgrain") or []
    assert not [requirement for requirement in declared if requirement.startswith(("bm3d", "bm4d"))]


def test_on_fine_texture_under_little_noise_doing_nothing_can_be_best():
    truth = 0.1 + 0.8 * torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    noisy = add_poisson_gaussian(truth, 1e-7, 1e-9, generator=torch.Generator().manual_seed(2))
    best = best_classical(noisy, truth, torch.ones(1, 1, SIDE, SIDE), MATRIX, methods=["gaussian"])["gaussian"]
    assert best.parameters == {"psnr": {}, "ms_ssim": {}, "psnr.linear": {}}
    assert best.picture is noisy


def test_pixels_that_do_not_count_decide_nothing(noisy: torch.Tensor):
    mask = torch.ones(1, 1, SIDE, SIDE)
    mask[..., :20, :] = 0
    truth, other = smooth_scene(), smooth_scene()
    other[..., :20, :] = 5.0
    results = [best_classical(noisy, t, mask, MATRIX, methods=["wavelet"])["wavelet"] for t in (truth, other)]
    assert results[0].parameters["psnr.linear"] == results[1].parameters["psnr.linear"]
    assert results[0].metrics["psnr.linear"] == pytest.approx(results[1].metrics["psnr.linear"])


def test_the_wavelet_transform_without_thresholds_gives_the_picture_back():
    planes = np.random.default_rng(0).normal(size=(3, 40, 37)).astype(np.float32)
    np.testing.assert_allclose(classical._wavelet(planes, 0.0, strength=1.0), planes, atol=1e-6)


def test_each_wavelet_band_of_white_noise_has_half_its_deviation():
    noise = np.random.default_rng(0).normal(size=(1, 512, 512))
    bands = [band for half in classical._split(noise, 1, axis=1) for band in classical._split(half, 1, axis=2)]
    np.testing.assert_allclose([band.std() for band in bands], 0.5, rtol=0.02)


def test_a_wavelet_band_of_nothing_but_noise_is_emptied_and_a_strong_one_hardly_touched():
    noise = np.random.default_rng(0).normal(size=(1, 64, 64))
    assert np.abs(classical._soft_threshold(noise * 0.99, 1.0)).max() == 0
    assert np.abs(classical._soft_threshold(noise * 100, 1.0) - noise * 100).max() < 0.011
