"""How good an output is, in numbers with stated domain, peak and mask. Names are canonical: `psnr`, `ms_ssim`, `mse`,
`l1`.

What either picture holds at a pixel that does not count has no influence on a value or a gradient, even infinity and
NaN; at a pixel that counts, NaN makes the result NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from pytorch_msssim.ssim import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from library.errors import ConfigError, DataError
from library.ops.color import camera_rgb_to_lin_rec2020, lin_rec2020_to_lin_srgb
from library.ops.transfer import srgb_encode

Direction = Literal["max", "min"]
DIRECTIONS: dict[str, Direction] = {
    "psnr": "max",
    "ms_ssim": "max",
    "loss": "min",
    "l1": "min",
    "mse": "min",
    "charbonnier": "min",
    "bpp": "min",
    "rate_gap": "min",
}
"""By the stem of a metric's name, which way is better."""

MS_SSIM_SMALLEST_SIDE = 161
"""Four halvings must leave the 11-tap window room: (11 - 1) * 2^4 must be less than the side."""

# Wang, Simoncelli and Bovik 2003, section 3.2, from fine to coarse; constants of Wang et al. 2004 for data range 1.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_TAPS, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def direction(name: str) -> Direction:
    """Which way a metric is better.

    name    a stem of `DIRECTIONS`, with or without its split before and its domain behind: `val/psnr.linear`
    raises  ConfigError for an unknown stem; and for `train/ms_ssim`, which is no metric but the loss 1 - MS-SSIM
    """
    split, _, metric = name.rpartition("/")
    stem = metric.partition(".")[0]
    if stem not in DIRECTIONS:
        raise ConfigError(f"unknown metric '{name}'; known: {', '.join(DIRECTIONS)}, as in val/psnr or psnr.linear")
    if (split, stem) == ("train", "ms_ssim"):
        raise ConfigError(f"'{name}' is the loss 1 - MS-SSIM, and no metric: use val/ms_ssim, or train/loss")
    return DIRECTIONS[stem]


# --- means over valid pixels ------------------------------------------------------------------------------------------


def only_valid(picture: Tensor, mask: Tensor) -> Tensor:
    """The picture with 0 at every pixel that does not count: a choice, not a product, so that infinity and NaN there
    reach neither a value nor a gradient.

    picture  (N, C, H, W)
    mask     (N, 1, H, W), 1 where a pixel counts, 0 where not
    """
    return torch.where(mask > 0, picture, 0.0)


def masked_mean_per_image(error: Tensor, mask: Tensor) -> Tensor:
    """Mean error of each image over its valid pixels.

    error    (N, C, H, W)
    mask     (N, 1, H, W), 1 where a pixel counts, 0 where not
    returns  (N,); 0 for an image without a valid pixel
    """
    area = mask.sum(dim=(1, 2, 3)) * error.shape[1]
    return only_valid(error, mask).sum(dim=(1, 2, 3)) / area.clamp_min(1)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean over images of each image's mean error over its valid pixels.

    Per image first, so that the result over a batch is the mean of the results over its parts, whatever their masks;
    this is what lets a global batch be spread over any number of workers.

    error    (N, C, H, W)
    mask     (N, 1, H, W), 1 where a pixel counts, 0 where not
    returns  scalar; an image without a valid pixel counts as 0
    """
    return masked_mean_per_image(error, mask).mean()


def l1(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the valid pixels, mean over images.

    output, target  (N, C, H, W), same domain, not clipped here
    mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
    returns         scalar
    """
    return masked_mean((only_valid(output, mask) - only_valid(target, mask)).abs(), mask)


def mse(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the valid pixels, mean over images. Otherwise as `l1`."""
    return masked_mean((only_valid(output, mask) - only_valid(target, mask)) ** 2, mask)


def psnr(output: Tensor, target: Tensor, mask: Tensor, *, peak: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(peak^2 / mse) over the valid pixels, mean over images.

    output, target  (N, C, H, W), same domain, not clipped here
    mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
    peak            the value that counts as full signal in this domain
    returns         scalar; infinite for equal images
    """
    error = masked_mean_per_image((only_valid(output, mask) - only_valid(target, mask)) ** 2, mask)
    return (10 * torch.log10(peak**2 / error)).mean()


# --- MS-SSIM ----------------------------------------------------------------------------------------------------------


def ms_ssim(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image (Wang, Simoncelli and Bovik 2003) over its valid pixels.

    Without invalid pixels it is pytorch-msssim's: data range 1, windows of 11 Gaussian taps of sigma 1.5 inside the
    picture, halving by 2 x 2 means (odd sides padded by black), a scale's mean below 0 taken as 0, mean over channels.

    With them, moments are normalized convolutions (Knutsson and Westin 1993): a window's are weighted means over its
    valid pixels, and it counts by their share of its weight; a halved pixel is the mean of the valid ones among its
    four, and counts by their share. So nothing invalid is seen, and it counts neither as perfect nor as bad.

    output, target  (N, C, H, W), range about [0, 1], below 0 is legal; both sides at least `MS_SSIM_SMALLEST_SIDE`
    mask            (N, 1, H, W), 1 where a pixel counts, 0 where not
    returns         (N,) float32, 1 for images that are equal where valid, as they are where nothing is valid
    raises          ValueError when a side is too small
    """
    side = min(output.shape[-2:])
    if side < MS_SSIM_SMALLEST_SIDE:
        raise ValueError(f"MS-SSIM over 5 scales needs sides of more than 160 px, but the image has {side}")
    x, y = (only_valid(picture.float(), mask) for picture in (output, target))
    valid = mask.float()
    similarity = x.new_ones(x.shape[:2])
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale:
            x, y, valid = _halved(x, y, valid)
        luminance, contrast, share = _similarity(x, y, valid)
        # The luminance is compared at the coarsest scale only (equation 7).
        similar = contrast * luminance if scale == len(_SCALE_WEIGHTS) - 1 else contrast
        mean = (similar * share).sum(dim=(2, 3)) / share.sum(dim=(2, 3)).clamp_min(torch.finfo(share.dtype).tiny)
        similarity = similarity * mean.relu() ** weight
    return torch.where(mask.amax(dim=(1, 2, 3)) > 0, similarity.mean(dim=1), 1.0)


def _similarity(x: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Luminance and contrast-structure of each window, (N, C, H - 10, W - 10), and the share of it that is valid
    (N, 1, ...)."""
    channels = x.shape[1]
    blurred = _blurred(torch.cat([x * valid, y * valid, x * x * valid, y * y * valid, x * y * valid, valid], dim=1))
    moments, share = blurred[:, :-1], blurred[:, -1:]
    mean_x, mean_y, xx, yy, xy = (moments / share.clamp_min(torch.finfo(share.dtype).tiny)).split(channels, dim=1)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    covariance, variances = xy - mean_x * mean_y, (xx - mean_x**2) + (yy - mean_y**2)
    return luminance, (2 * covariance + _C2) / (variances + _C2), share


def _blurred(planes: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H - 10, W - 10): Gaussian means of the windows inside the picture."""
    taps = torch.arange(_TAPS, device=planes.device, dtype=torch.float32) - _TAPS // 2
    window = torch.softmax(-(taps**2) / (2 * _SIGMA**2), dim=0)
    return gaussian_filter(planes, window.expand(planes.shape[1], 1, 1, -1))


def _halved(x: Tensor, y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both pictures at half size, and the share of each new pixel that is valid."""

    def pooled(planes: Tensor) -> Tensor:
        # pytorch-msssim pads odd sides by zeros on both ends, and counts them in the mean.
        return F.avg_pool2d(planes, kernel_size=2, padding=[side % 2 for side in planes.shape[-2:]])

    share = pooled(valid) / pooled(torch.ones_like(valid))
    divisor = share.clamp_min(torch.finfo(share.dtype).tiny)
    return pooled(x * valid) / divisor, pooled(y * valid) / divisor, share


# --- what a denoiser is judged by -------------------------------------------------------------------------------------


def compare_camera_rgb(output: Tensor, truth: Tensor, mask: Tensor, xyz_to_camera: Tensor) -> dict[str, float]:
    """The numbers that a raw denoiser is judged by, means over the images, each over its valid pixels.

    `psnr`         developed: sRGB primaries and curve, clipped to [0, 1], peak 1
    `ms_ssim`      developed, as above, of the smallest rectangle that holds all valid pixels; see `ms_ssim`
    `psnr.linear`  lin_rec2020, unclipped, peak 1 (the sensor's white)

    Where the mask is a rectangle with sides of more than 160 px, they are the numbers of that crop.

    output, truth  (N, 3, H, W) camera RGB at absolute scale, sides of more than 160 px
    mask           (N, 1, H, W), 1 where a pixel counts, 0 where not
    xyz_to_camera  (N, 3, 3)
    raises         DataError for an image without a valid pixel, which nothing can be said of
    """
    if not (counts := mask.sum(dim=(1, 2, 3)) > 0).all():
        index = int((~counts).nonzero()[0])
        raise DataError(f"image {index} of {len(mask)} has no valid pixel to be compared at: leave it out")
    linear, true_linear = (camera_rgb_to_lin_rec2020(x.float(), xyz_to_camera=xyz_to_camera) for x in (output, truth))
    developed, true_developed = (srgb_encode(lin_rec2020_to_lin_srgb(x).clamp(0, 1)) for x in (linear, true_linear))
    similarity = []
    for index in range(len(mask)):
        rows, columns = _box_of_valid(mask[index, 0])
        cut = (slice(index, index + 1), slice(None), rows, columns)
        similarity.append(ms_ssim(developed[cut], true_developed[cut], mask[cut]))
    return {
        "psnr": float(psnr(developed, true_developed, mask)),
        "ms_ssim": float(torch.cat(similarity).mean()),
        "psnr.linear": float(psnr(linear, true_linear, mask)),
    }


def brightness_aligned(output: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The output at the brightness of the truth: each image times one factor, which brings its mean over all valid
    pixels and channels to that of the truth. What is left is not a question of exposure.

    output, truth  (N, 3, H, W), same linear domain
    mask           (N, 1, H, W), 1 where a pixel counts, 0 where not
    returns        (N, 3, H, W); an image whose mean, or whose truth's, is not above 0 stays as it is
    """
    means = [masked_mean_per_image(picture.float(), mask) for picture in (truth, output)]
    wanted, own = (mean[:, None, None, None] for mean in means)
    return torch.where((wanted > 0) & (own > 0), output * (wanted / own), output)


def compare_aligned(output: Tensor, truth: Tensor, mask: Tensor, xyz_to_camera: Tensor) -> dict[str, float]:
    """The numbers of `compare_camera_rgb` after `brightness_aligned`: `psnr.aligned`, `ms_ssim.aligned` and
    `psnr.linear.aligned`. The brightness is that of camera RGB."""
    aligned = compare_camera_rgb(brightness_aligned(output, truth, mask), truth, mask, xyz_to_camera)
    return {f"{name}.aligned": value for name, value in aligned.items()}


def _box_of_valid(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the smallest rectangle that holds all valid pixels of (H, W), and that MS-SSIM can take."""

    def extent(valid: Tensor) -> slice:
        found = valid.nonzero()
        start, stop = int(found[0]), int(found[-1]) + 1
        start = max(0, min(start, len(valid) - MS_SSIM_SMALLEST_SIDE))
        return slice(start, max(stop, start + MS_SSIM_SMALLEST_SIDE))

    return extent((mask > 0).any(dim=1)), extent((mask > 0).any(dim=0))
