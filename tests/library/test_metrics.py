from __future__ import annotations

import numpy as np
import pytest
import skimage.metrics
import torch
from torch import Tensor

from library.metrics import MS_SSIM_SMALLEST_SIDE, compare_camera_rgb, masked_mean, ms_ssim, psnr
from library.ops.color import camera_rgb_to_lin_rec2020

SONY = torch.tensor([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])


def pictures(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(*shape, generator=generator)
    return target + 0.1 * torch.randn(*shape, generator=generator), target


def all_valid(picture: Tensor) -> Tensor:
    return torch.ones(len(picture), 1, *picture.shape[-2:])


# --- masked mean ------------------------------------------------------------------------------------------------------


def test_without_a_mask_the_mean_is_the_mean():
    error, _ = pictures(3, 2, 8, 8)
    torch.testing.assert_close(masked_mean(error, all_valid(error)), error.mean())


def test_the_mean_over_a_batch_is_the_mean_over_its_parts_whatever_their_masks():
    error, _ = pictures(4, 3, 8, 8)
    mask = (torch.arange(4 * 64).reshape(4, 1, 8, 8) % 7 < torch.tensor([1, 3, 5, 7])[:, None, None, None]).float()
    parts = [masked_mean(error[i : i + 1], mask[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(masked_mean(error, mask), torch.stack(parts).mean())
    halves = [masked_mean(error[half], mask[half]) for half in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(masked_mean(error, mask), torch.stack(halves).mean())


def test_the_mean_counts_valid_pixels_only_and_an_image_without_any_as_zero():
    error = torch.tensor([1.0, 5.0, 3.0, 7.0]).reshape(1, 1, 2, 2)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert masked_mean(error, mask) == 2
    assert masked_mean(error, torch.zeros_like(mask)) == 0


# --- PSNR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "peak", "decibels"), [(0.1, 1, 20), (0.01, 1, 40), (0.1, 10, 40), (1, 255, 48.1308)])
def test_a_constant_error_has_the_psnr_of_its_definition(error: float, peak: float, decibels: float):
    target = torch.full((2, 3, 8, 8), 0.5)
    assert float(psnr(target + error, target, all_valid(target), peak=peak)) == pytest.approx(decibels, abs=1e-3)


def test_it_agrees_with_scikit_image():
    output, target = pictures(1, 3, 20, 20)
    theirs = skimage.metrics.peak_signal_noise_ratio(target.numpy(), output.numpy(), data_range=1)
    assert float(psnr(output, target, all_valid(target))) == pytest.approx(float(theirs), abs=1e-4)


def test_masking_all_but_a_crop_is_the_psnr_of_the_crop():
    output, target = pictures(1, 3, 20, 20)
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 3:9, 5:20] = 1
    crop = psnr(output[..., 3:9, 5:20], target[..., 3:9, 5:20], torch.ones(1, 1, 6, 15))
    torch.testing.assert_close(psnr(output, target, mask), crop)
    assert not torch.isclose(psnr(output, target, all_valid(target)), crop, atol=1e-3)


def test_over_a_batch_it_is_the_mean_of_decibels_not_of_errors():
    target = torch.zeros(2, 3, 4, 4)
    output = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 0.01)])
    assert float(psnr(output, target, all_valid(target))) == pytest.approx(30)


def test_halving_the_error_gains_six_decibels_and_equal_pictures_are_infinitely_good():
    output, target = pictures(1, 3, 8, 8)
    gain = psnr((output + target) / 2, target, all_valid(target)) - psnr(output, target, all_valid(target))
    assert float(gain) == pytest.approx(6.0206, abs=1e-3)
    assert psnr(target, target, all_valid(target)) == torch.inf


# --- MS-SSIM ----------------------------------------------------------------------------------------------------------


def test_equal_pictures_have_ms_ssim_one_and_noise_lowers_it():
    output, target = pictures(2, 3, 176, 176)
    assert torch.equal(ms_ssim(target, target), torch.ones(2))
    worse, worst = ms_ssim(output, target), ms_ssim(target + 3 * (output - target), target)
    assert (worse < 1).all()
    assert (worse > worst).all()


def test_ms_ssim_does_not_care_which_picture_is_the_truth():
    output, target = pictures(1, 3, 176, 176)
    torch.testing.assert_close(ms_ssim(output, target), ms_ssim(target, output))


@pytest.mark.parametrize("size", [(160, 176), (176, 160), (16, 16)])
def test_a_side_of_160_is_refused_in_words_and_161_taken(size: tuple[int, int]):
    picture = torch.rand(1, 3, *size)
    with pytest.raises(ValueError, match=f"sides of more than 160 px, but the image has {min(size)}"):
        ms_ssim(picture, picture)
    picture = torch.rand(1, 3, MS_SSIM_SMALLEST_SIDE, MS_SSIM_SMALLEST_SIDE)
    assert float(ms_ssim(picture, picture)) == 1


def test_ms_ssim_is_computed_in_float32_whatever_comes():
    output, target = pictures(1, 3, 176, 176)
    assert ms_ssim(output.bfloat16(), target.bfloat16()).dtype == torch.float32


# --- what a denoiser is judged by ------------------------------------------------------------------------------------


def test_the_comparison_has_the_names_and_domains_it_states():
    output, target = pictures(1, 3, 176, 176)
    found = compare_camera_rgb(output, target, all_valid(target), SONY[None])
    assert found.keys() == {"psnr", "ms_ssim", "psnr.linear"}
    linear = [camera_rgb_to_lin_rec2020(x, xyz_to_camera=SONY[None]) for x in (output, target)]
    assert found["psnr.linear"] == float(psnr(linear[0], linear[1], all_valid(target)))
    assert all(isinstance(value, float) for value in found.values())


def test_what_a_display_cannot_show_is_judged_in_linear_light_only():
    _, target = pictures(1, 3, 176, 176)
    white = torch.full_like(target, 4.0)
    found = compare_camera_rgb(white * 2, white, all_valid(target), SONY[None])
    assert found["psnr"] == np.inf
    assert found["ms_ssim"] == 1
    assert found["psnr.linear"] < 0


def test_masked_pixels_do_not_enter_the_comparison():
    output, target = pictures(1, 3, 176, 176)
    mask = all_valid(target)
    mask[..., :40, 50:] = 0
    spoilt = torch.where(mask.bool(), output, output + 5)
    assert compare_camera_rgb(spoilt, target, mask, SONY[None]) == compare_camera_rgb(output, target, mask, SONY[None])
    assert compare_camera_rgb(spoilt, target, all_valid(target), SONY[None])["psnr"] < 20
