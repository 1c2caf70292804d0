from __future__ import annotations

import numpy as np
import pytest
import pytorch_msssim
import skimage.metrics
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from library.errors import ConfigError, DataError
from library.metrics import (
    DIRECTIONS,
    MS_SSIM_SMALLEST_SIDE,
    brightness_aligned,
    compare_aligned,
    compare_camera_rgb,
    direction,
    l1,
    masked_mean,
    ms_ssim,
    mse,
    only_valid,
    psnr,
)
from library.ops.color import camera_rgb_to_lin_rec2020

SONY = torch.tensor([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])


def pictures(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(*shape, generator=generator)
    return target + 0.1 * torch.randn(*shape, generator=generator), target


def all_valid(picture: Tensor) -> Tensor:
    return torch.ones(len(picture), 1, *picture.shape[-2:])


def with_hole(picture: Tensor) -> Tensor:
    """A mask with a corner and scattered pixels left out, others in each image."""
    mask = (torch.rand(len(picture), 1, *picture.shape[-2:], generator=torch.Generator().manual_seed(9)) > 0.02).float()
    mask[..., :40, 50:] = 0
    return mask


def poisoned(picture: Tensor, mask: Tensor) -> Tensor:
    """The picture with infinities and NaN where the mask is 0."""
    generator = torch.Generator().manual_seed(3)
    poison = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38])
    return torch.where(mask > 0, picture, poison[torch.randint(4, picture.shape, generator=generator)])


# --- which way is better ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("psnr", "max"), ("val/psnr.linear", "max"), ("val/ms_ssim", "max"), ("train/loss", "min"), ("test/bpp", "min")],
)
def test_the_direction_of_a_metric_is_that_of_its_stem_in_any_split_and_domain(name: str, expected: str):
    assert direction(name) == expected


def test_every_direction_is_the_one_in_which_equal_pictures_lie():
    output, target = pictures(1, 3, 176, 176)
    valid = all_valid(target)
    for stem, measure in {"psnr": psnr, "ms_ssim": ms_ssim, "l1": l1, "mse": mse}.items():
        gain = float(measure(target, target, valid)) - float(measure(output, target, valid))
        assert (gain > 0) == (DIRECTIONS[stem] == "max"), stem


@pytest.mark.parametrize("name", ["", "val/", "val/psnrs", "PSNR", "linear.psnr", "lr"])
def test_an_unknown_metric_is_refused_with_the_known_ones(name: str):
    with pytest.raises(ConfigError, match=f"unknown metric '{name}'; known: psnr, ms_ssim, loss, "):
        direction(name)


def test_the_training_loss_that_shares_its_name_with_a_metric_is_refused():
    """`train/ms_ssim` is logged as 1 - MS-SSIM: maximizing it would look for the worst."""
    with pytest.raises(ConfigError, match="'train/ms_ssim' is the loss 1 - MS-SSIM"):
        direction("train/ms_ssim")


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


@pytest.mark.parametrize("measure", [l1, mse, psnr, ms_ssim])
def test_what_is_masked_has_no_influence_even_when_it_is_not_a_number(measure):
    """A product with the mask would make NaN of it, in the value and, through a branch not taken, in the gradient."""
    output, target = pictures(2, 3, 176, 176)
    mask = with_hole(target)
    values, gradients = [], []
    for picture, truth in ((output, target), (poisoned(output, mask), target), (output, poisoned(target, mask))):
        picture = picture.clone().requires_grad_()
        value = measure(picture, truth, mask).sum()
        value.backward()
        values.append(value.item())
        gradients.append(picture.grad)
    assert np.isfinite(values[0])
    assert values[0] == values[1] == values[2]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert not only_valid(gradients[0], 1 - mask).any()
    assert gradients[0].isfinite().all()


@pytest.mark.parametrize("measure", [l1, mse, psnr, ms_ssim])
def test_a_pixel_that_counts_and_is_not_a_number_is_never_silent(measure):
    output, target = pictures(2, 3, 176, 176)
    output[1, 2, 100, 100] = torch.nan
    assert measure(output, target, with_hole(target)).isnan().any()


@pytest.mark.parametrize("measure", [l1, mse, psnr])
def test_masking_all_but_a_rectangle_is_measuring_that_crop(measure):
    output, target = pictures(1, 3, 20, 20)
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., 3:9, 5:20] = 1
    crop = measure(output[..., 3:9, 5:20], target[..., 3:9, 5:20], torch.ones(1, 1, 6, 15))
    torch.testing.assert_close(measure(output, target, mask), crop)
    assert not torch.isclose(measure(output, target, all_valid(target)), crop, rtol=1e-3)


def test_l1_and_mse_are_their_definitions():
    output, target = pictures(2, 3, 8, 8)
    error = (output - target).double()
    assert float(l1(output, target, all_valid(target))) == pytest.approx(float(error.abs().mean()))
    assert float(mse(output, target, all_valid(target))) == pytest.approx(float((error**2).mean()))


# --- PSNR -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "peak", "decibels"), [(0.1, 1, 20), (0.01, 1, 40), (0.1, 10, 40), (1, 255, 48.1308)])
def test_a_constant_error_has_the_psnr_of_its_definition(error: float, peak: float, decibels: float):
    target = torch.full((2, 3, 8, 8), 0.5)
    assert float(psnr(target + error, target, all_valid(target), peak=peak)) == pytest.approx(decibels, abs=1e-3)


def test_it_agrees_with_scikit_image():
    output, target = pictures(1, 3, 20, 20)
    theirs = skimage.metrics.peak_signal_noise_ratio(target.numpy(), output.numpy(), data_range=1)
    assert float(psnr(output, target, all_valid(target))) == pytest.approx(float(theirs), abs=1e-4)


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


def ms_ssim_in_float64(x: np.ndarray, y: np.ndarray) -> float:
    """Of two (C, H, W) pictures, written from Wang, Simoncelli and Bovik 2003 with pytorch-msssim's conventions."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def mean(picture: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(picture, taps, axis=0), taps, axis=1)[5:-5, 5:-5]

    def halved(picture: np.ndarray) -> np.ndarray:
        odd = [side % 2 for side in picture.shape]
        padded = np.pad(picture, [(o, o) for o in odd])
        height, width = (side // 2 * 2 for side in padded.shape)
        return padded[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))

    channels = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        product = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            if scale:
                a, b = halved(a), halved(b)
            mean_a, mean_b = mean(a), mean(b)
            variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
            contrast = (2 * (mean(a * b) - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
            if scale == 4:
                contrast *= (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            product *= max(contrast.mean(), 0) ** weight
        channels.append(product)
    return float(np.mean(channels))


def scene(*size: int) -> tuple[Tensor, Tensor]:
    """Structure at all scales, and the same blurred, brightened and noisy."""
    generator = torch.Generator().manual_seed(1)
    target = torch.zeros(2, 3, *size)
    for octave in range(5):
        coarse = torch.rand(2, 3, *(side // 2**octave + 2 for side in size), generator=generator)
        target += torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") / 5
    blurred = torch.nn.functional.avg_pool2d(target, 3, stride=1, padding=1)
    return 0.9 * blurred + 0.05 + 0.05 * torch.randn(target.shape, generator=generator), target


@pytest.mark.parametrize("size", [(161, 161), (176, 201), (190, 170)])
def test_without_a_mask_it_is_that_of_two_independent_implementations(size: tuple[int, int]):
    output, target = scene(*size)
    found = ms_ssim(output, target, all_valid(target))
    oracle = [ms_ssim_in_float64(o.numpy(), t.numpy()) for o, t in zip(output, target, strict=True)]
    np.testing.assert_allclose(found.numpy(), oracle, atol=1e-5)
    theirs = pytorch_msssim.ms_ssim(output, target, data_range=1.0, size_average=False)
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)
    assert (found < 0.98).all()


def test_without_a_mask_its_gradient_is_that_of_pytorch_msssim_too():
    output, target = scene(176, 176)
    gradients = []
    for measure in (
        lambda x: ms_ssim(x, target, all_valid(target)),
        lambda x: pytorch_msssim.ms_ssim(x, target, data_range=1.0, size_average=False),
    ):
        x = output.clone().requires_grad_()
        measure(x).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-3 * gradients[1].abs().max()


def test_structures_that_contradict_each_other_have_no_similarity_in_either_implementation():
    _, target = scene(176, 176)
    assert not ms_ssim(1 - target, target, all_valid(target)).any()
    assert ms_ssim_in_float64(1 - target[0].numpy(), target[0].numpy()) == 0


def test_equal_pictures_have_ms_ssim_one_and_noise_lowers_it():
    output, target = pictures(2, 3, 176, 176)
    for mask in (all_valid(target), with_hole(target)):
        assert torch.equal(ms_ssim(target, target, mask), torch.ones(2))
        worse, worst = ms_ssim(output, target, mask), ms_ssim(target + 3 * (output - target), target, mask)
        assert (worse < 1).all()
        assert (worse > worst).all()


def test_ms_ssim_does_not_care_which_picture_is_the_truth():
    output, target = pictures(1, 3, 176, 176)
    mask = with_hole(target)
    torch.testing.assert_close(ms_ssim(output, target, mask), ms_ssim(target, output, mask))


def test_what_is_masked_counts_neither_as_perfect_nor_as_bad():
    """The same damage everywhere, half of it masked: as similar as the other half. Once, masked pixels were set to the
    truth, so that half of the picture was perfect."""
    output, target = scene(240, 240)
    mask = all_valid(target)
    mask[..., 120:] = 0
    found, whole = ms_ssim(output, target, mask), ms_ssim(output, target, all_valid(target))
    half_perfect = ms_ssim(torch.where(mask > 0, output, target), target, all_valid(target))
    assert (half_perfect - whole > 0.015).all()
    torch.testing.assert_close(found, whole, atol=0.004, rtol=0)
    crop = [x[..., :172, :172] for x in (output, target)]
    mask = torch.zeros_like(mask)
    mask[..., :172, :172] = 1
    torch.testing.assert_close(ms_ssim(output, target, mask), ms_ssim(*crop, all_valid(crop[0])), atol=0.002, rtol=0)


def test_masking_damage_away_leaves_nothing_of_it():
    output, target = scene(200, 200)
    mask = all_valid(target)
    mask[..., 60:90, 20:150] = 0
    damaged = torch.where(mask > 0, target, output + 1)
    assert torch.equal(ms_ssim(damaged, target, mask), torch.ones(2))
    assert (ms_ssim(damaged, target, all_valid(target)) < 0.9).all()


def test_an_image_without_a_valid_pixel_has_nothing_unlike():
    output, target = scene(176, 176)
    mask = all_valid(target)
    mask[0] = 0
    found = ms_ssim(output, target, mask)
    assert found[0] == 1
    assert found[1] < 0.98


@pytest.mark.parametrize("size", [(160, 176), (176, 160), (16, 16)])
def test_a_side_of_160_is_refused_in_words_and_161_taken(size: tuple[int, int]):
    picture = torch.rand(1, 3, *size)
    with pytest.raises(ValueError, match=f"sides of more than 160 px, but the image has {min(size)}"):
        ms_ssim(picture, picture, all_valid(picture))
    picture = torch.rand(1, 3, MS_SSIM_SMALLEST_SIDE, MS_SSIM_SMALLEST_SIDE)
    assert float(ms_ssim(picture, picture, all_valid(picture))) == 1


def test_ms_ssim_is_computed_in_float32_whatever_comes():
    output, target = pictures(1, 3, 176, 176)
    assert ms_ssim(output.bfloat16(), target.bfloat16(), all_valid(target)).dtype == torch.float32


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
    mask = with_hole(target)
    found = compare_camera_rgb(output, target, mask, SONY[None])
    for picture, truth in ((output + 5 * (1 - mask), target), (poisoned(output, mask), poisoned(target, mask))):
        assert compare_camera_rgb(picture, truth, mask, SONY[None]) == found
    assert compare_camera_rgb(output + 5 * (1 - mask), target, all_valid(target), SONY[None])["psnr"] < 20


@pytest.mark.parametrize("rectangle", [(slice(7, 170), slice(20, 181)), (slice(30, 200), slice(0, 175))])
def test_comparing_where_a_rectangle_is_valid_is_comparing_that_crop(rectangle: tuple[slice, slice]):
    output, target = scene(200, 190)
    mask = torch.zeros(2, 1, 200, 190)
    mask[(..., *rectangle)] = 1
    matrices = torch.stack([SONY, SONY])
    cut = [x[(..., *rectangle)] for x in (output, target, mask)]
    crop = compare_camera_rgb(cut[0], cut[1], cut[2], matrices)
    found = compare_camera_rgb(output, target, mask, matrices)
    assert found["ms_ssim"] == crop["ms_ssim"]
    assert found == pytest.approx(crop, rel=1e-6)
    assert found != pytest.approx(compare_camera_rgb(output, target, all_valid(target), matrices), rel=1e-4)


def test_a_comparison_takes_valid_areas_smaller_than_ms_ssim_needs():
    output, target = scene(176, 190)
    for rectangle in ((slice(0, 30), slice(0, 30)), (slice(150, 176), slice(185, 190)), (slice(90, 91), slice(7, 8))):
        mask = torch.zeros(2, 1, 176, 190)
        mask[(..., *rectangle)] = 1
        found = compare_camera_rgb(output, target, mask, torch.stack([SONY, SONY]))
        assert all(np.isfinite(value) for value in found.values())
        assert found["ms_ssim"] < 1


def test_an_image_that_cannot_be_compared_anywhere_is_refused():
    output, target = scene(176, 176)
    mask = all_valid(target)
    mask[1] = 0
    with pytest.raises(DataError, match="image 1 of 2 has no valid pixel"):
        compare_camera_rgb(output, target, mask, torch.stack([SONY, SONY]))


def test_aligned_numbers_do_not_depend_on_the_brightness_of_the_output():
    output, target = scene(176, 176)
    matrices, mask = torch.stack([SONY, SONY]), with_hole(target)
    factors = torch.tensor([0.25, 3.0])[:, None, None, None]
    found = compare_aligned(output, target, mask, matrices)
    assert compare_aligned(output * factors, target, mask, matrices) == pytest.approx(found, rel=1e-5)
    plain = compare_camera_rgb(output * factors, target, mask, matrices)
    assert all(found[f"{name}.aligned"] > plain[name] for name in ("psnr", "psnr.linear"))


def test_what_has_the_brightness_of_the_truth_is_not_changed_by_aligning_it():
    _, target = scene(176, 176)
    matrices, mask = torch.stack([SONY, SONY]), all_valid(target)
    shuffled = target.flip(-1)
    plain = compare_camera_rgb(shuffled, target, mask, matrices)
    aligned = compare_aligned(shuffled, target, mask, matrices)
    assert {name.removesuffix(".aligned"): value for name, value in aligned.items()} == pytest.approx(plain, rel=1e-4)


def test_an_output_without_light_cannot_be_aligned_and_stays():
    _, target = scene(176, 176)
    for dark in (torch.zeros_like(target), -target):
        assert torch.equal(brightness_aligned(dark, target, all_valid(target)), dark)


def test_pixels_that_do_not_count_do_not_brighten():
    output, target = scene(176, 176)
    mask = with_hole(target)
    spoilt = torch.where(mask > 0, output, 1e6)
    aligned = [brightness_aligned(picture, target, mask) * mask for picture in (output, spoilt)]
    assert torch.equal(*aligned)
