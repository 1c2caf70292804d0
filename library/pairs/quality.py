"""What is to be known of a pair beyond where its images lie: by how much they differ in brightness, how alike they are,
and what a person may want to look at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from library.metrics import MS_SSIM_SMALLEST_SIDE, ms_ssim
from library.ops.color import camera_rgb_to_lin_rec2020
from library.pairs.align import Mosaic
from library.pairs.shift import Overlap

_BELOW_CLIPPING = 0.9
"""Of the noisy image's clipping level: noise takes some photosites above it that are darker in truth."""
_COLOR_OF_SITE = (0, 1, 1, 2)
LEAST_VALID = 0.8
"""Share of valid pixels below which RawNIND's loaders drop a pair."""
_LARGEST_GAIN = 8.0


def mosaic_gains(
    gt: Mosaic, f: Mosaic, shared: Overlap, mask: np.ndarray | None = None, *, expected: float | None = None
) -> tuple[float, float]:
    """By how much the clean image is brighter: mean over mean, of all photosites and of camera RGB.

    mask      (height, width) of the overlap, bool, True where a pixel counts; None: all of it
    expected  roughly the gain, which tells where the noisy image clips; None: it is taken not to
    returns   (raw gain, RGB gain); 1 where an image is not above black

    Which pixels count is decided by the clean image alone: a choice by noisy values would shift their mean.
    """
    ceiling = gt.overexposure_lb
    if expected is not None:
        ceiling = min(ceiling, _BELOW_CLIPPING * expected * f.overexposure_lb)
    sums, counts = np.zeros((2, 3)), np.zeros((2, 3))
    counts_gt, counts_f = gt.counts[shared.gt], f.counts[shared.f]
    for y, x in np.ndindex(2, 2):
        # The noisy image's overlap starts at a red photosite, the clean one's at any.
        gt_site, f_site = (shared.gt_top + y) % 2 * 2 + (shared.gt_left + x) % 2, 2 * y + x
        clean = counts_gt[y::2, x::2]
        valid = clean < gt.black_level[gt_site] + ceiling * (gt.white_level - gt.black_level[gt_site])
        if mask is not None:
            valid &= mask[y::2, x::2]
        number = int(valid.sum())
        for row, (image, plane, site) in enumerate(((gt, clean, gt_site), (f, counts_f[y::2, x::2], f_site))):
            black, color = image.black_level[site], _COLOR_OF_SITE[site]
            total = float(np.sum(plane, where=valid, dtype=np.float64))
            sums[row, color] += (total - number * black) / (image.white_level - black)
            counts[row, color] += number
    rgb = sums / np.maximum(counts, 1)
    return _ratio(*sums.sum(1)), _ratio(*rgb.mean(1))


def picture_gain(gt_rgb: np.ndarray, f_rgb: np.ndarray, mask: np.ndarray) -> float:
    """Mean of a clean picture over that of a noisy one, over valid pixels; 1 where one is not above black.

    gt_rgb, f_rgb  (H, W, 3) on one another
    mask           (H, W) bool
    """
    where = mask[..., None]
    return _ratio(*(float(np.sum(rgb, where=where, dtype=np.float64)) for rgb in (gt_rgb, f_rgb)))


def similarity(gt_rgb: Tensor, f_rgb: Tensor, mask: Tensor, xyz_to_camera: tuple[float, ...]) -> float | None:
    """MS-SSIM of two images in lin_rec2020, unclipped, over valid pixels.

    gt_rgb, f_rgb  (3, H, W) camera RGB on one another, f times its gain
    mask           (H, W) bool
    returns        None for sides below 161 px, which five scales do not fit into
    """
    if min(mask.shape) < MS_SSIM_SMALLEST_SIDE:
        return None
    matrix = torch.tensor(xyz_to_camera, dtype=torch.float64).reshape(3, 3)
    gt, f = (camera_rgb_to_lin_rec2020(rgb, xyz_to_camera=matrix)[None] for rgb in (gt_rgb, f_rgb))
    return float(ms_ssim(f, gt, mask[None, None].float()))


def flags(*, alignment_ok: bool, mask_mean: float, rgb_gain: float, same_camera: bool, same_size: bool) -> list[str]:
    """What a person may want to look at before training on a pair."""
    found = {
        "alignment uncertain": not alignment_ok,
        "little valid": mask_mean < LEAST_VALID,
        "brightness differs": not 1 / _LARGEST_GAIN <= rgb_gain <= _LARGEST_GAIN,
        "cameras differ": not same_camera,
        "sizes differ": not same_size,
    }
    return [name for name, applies in found.items() if applies]


def _ratio(clean: float, noisy: float) -> float:
    return float(clean / noisy) if clean > 0 and noisy > 0 else 1.0
