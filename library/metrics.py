"""How good an output is, in numbers with stated domain, peak and mask. Names are canonical: `psnr`, `ms_ssim`, `mse`,
`l1`."""

from __future__ import annotations

import torch
from pytorch_msssim import ms_ssim as _ms_ssim
from torch import Tensor

from library.ops.color import camera_rgb_to_lin_rec2020, lin_rec2020_to_lin_srgb
from library.ops.transfer import srgb_encode

MS_SSIM_SMALLEST_SIDE = 161
"""pytorch-msssim refuses 160 px a side and takes 161: (11 - 1) * 2^4 must be less than the side."""


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of each image's mean error over its valid pixels.

    Per image first, so that the result over a batch is the mean of the results over its parts, whatever their masks;
    this is what lets a global batch be spread over any number of workers.

    error   (N, C, H, W)
    mask    (N, 1, H, W), 1 where a pixel counts
    returns scalar; an image without a valid pixel counts as 0
    """
    area = mask.sum(dim=(1, 2, 3)) * error.shape[1]
    return ((error * mask).sum(dim=(1, 2, 3)) / area.clamp_min(1)).mean()


def psnr(output: Tensor, target: Tensor, mask: Tensor, *, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(peak^2 / mse), mean over images.

    output, target  (N, C, H, W), same domain, not clipped here
    mask            (N, 1, H, W), 1 where a pixel counts
    peak            the value that counts as full signal in this domain
    returns         scalar; infinite for equal images
    """
    per_image = [masked_mean((o - t)[None] ** 2, m[None]) for o, t, m in zip(output, target, mask, strict=True)]
    return (10 * torch.log10(peak**2 / torch.stack(per_image))).mean()


def ms_ssim(output: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image (Wang, Simoncelli, Bovik 2003), data range 1.

    output, target  (N, C, H, W) float32, both sides at least `MS_SSIM_SMALLEST_SIDE`
    returns         (N,), 1 for equal images
    raises          ValueError when a side is too small
    """
    side = min(output.shape[-2:])
    if side < MS_SSIM_SMALLEST_SIDE:
        raise ValueError(f"MS-SSIM over 5 scales needs sides of more than 160 px, but the image has {side}")
    return _ms_ssim(output.float(), target.float(), data_range=1.0, size_average=False)


def compare_camera_rgb(output: Tensor, truth: Tensor, mask: Tensor, xyz_to_camera: Tensor) -> dict[str, float]:
    """The numbers that a raw denoiser is judged by, means over the images.

    `psnr`         developed: sRGB primaries and curve, clipped to [0, 1], peak 1
    `ms_ssim`      developed, as above; pixels that do not count are set to the truth
    `psnr.linear`  lin_rec2020, unclipped, peak 1 (the sensor's white)

    output, truth  (N, 3, H, W) camera RGB at absolute scale, sides of more than 160 px
    mask           (N, 1, H, W), 1 where a pixel counts
    xyz_to_camera  (N, 3, 3)
    """
    linear, true_linear = (camera_rgb_to_lin_rec2020(x.float(), xyz_to_camera=xyz_to_camera) for x in (output, truth))
    developed, true_developed = (srgb_encode(lin_rec2020_to_lin_srgb(x).clamp(0, 1)) for x in (linear, true_linear))
    filled = true_developed + (developed - true_developed) * mask
    return {
        "psnr": float(psnr(developed, true_developed, mask)),
        "ms_ssim": float(ms_ssim(filled, true_developed).mean()),
        "psnr.linear": float(psnr(linear, true_linear, mask)),
    }
