"""From a network's output to a loss, in one place: mask -> gain -> camera matrix -> gain -> transfer -> losses over the
mask, all in float32. What is done to a network's input for the sake of the loss stands here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from library.bundle import OutputGain
from library.datasets.batch import Batch
from library.losses import LossConfig
from library.metrics import masked_mean_per_image, only_valid
from library.ops.cfa import sample_cfa, unpack_cfa
from library.ops.cfa_planes import CFA_PLANES
from library.ops.color import camera_rgb_to_lin_rec2020, lin_rec2020_to_lin_srgb
from library.ops.transfer import gamma22_encode, pq_encode, root_encode, srgb_encode

Transfer = Literal["none", "root", "srgb", "gamma22", "pq", "developed"]
"""Of lin_rec2020; all but `developed` are curves, which leave the primaries alone."""

Gain = Literal["absolute", "match_target", "match_input"]
"""Who answers for brightness.

absolute      the network: its output is compared as it is
match_target  nobody: each output image is scaled to its target's mean, in camera RGB and again in lin_rec2020, so that
              the network learns an arbitrary gain (RawNIND's `match_gain: output`)
match_input   the data: the network's input is scaled so that its mean is that of the truth, and the output is compared
              as it is (RawNIND's `match_gain: input`)
"""

LARGEST_GAIN = 100.0
"""Of one picture to another's mean, and its inverse the smallest."""
_DARKEST_MEAN = 1e-6
"""Scene-linear. What is darker has no brightness to match, and counts as this bright."""


def developed_encode(lin_rec2020: Tensor) -> Tensor:
    """Linear Rec.2020 (N, 3, H, W) to sRGB primaries and curve: unclipped, unlike a picture to look at, so that what a
    display cannot show has gradients."""
    return srgb_encode(lin_rec2020_to_lin_srgb(lin_rec2020))


_ENCODE: dict[Transfer, Callable[[Tensor], Tensor]] = {
    "none": lambda lin_rec2020: lin_rec2020,
    "root": root_encode,
    "srgb": srgb_encode,
    "gamma22": gamma22_encode,
    "pq": pq_encode,
    "developed": developed_encode,
}


def matching_gain(picture: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Factor that brings each picture to its target's mean, over all channels and valid pixels.

    picture, target  (N, C, H, W), any range
    mask             (N, 1, H, W), 1 where a pixel counts, 0 where not
    returns          (N, 1, 1, 1), from 1 / `LARGEST_GAIN` to `LARGEST_GAIN`: a picture whose mean is near or below 0
                     gets the largest, as a constant, so that a loss pulls its mean up
    """
    wanted = masked_mean_per_image(target, mask).clamp_min(_DARKEST_MEAN)
    mean = masked_mean_per_image(picture, mask)
    return (wanted / torch.clamp(mean, wanted / LARGEST_GAIN, wanted * LARGEST_GAIN))[:, None, None, None]


def match_mean(picture: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Each picture at its target's mean. Otherwise as `matching_gain`, through which the gradient goes.

    picture  (N, C, H, W), any range; finite where it does not count too, if a gradient is wanted
    """
    return picture * matching_gain(picture, target, mask)


def match_input(batch: Batch) -> Batch:
    """The batch with each noisy mosaic at the mean of the truth's mosaic, over the valid photosites: like with like,
    since a mosaic measures green twice and a picture does not. A picture is compared with the truth itself."""
    if batch.noisy.shape[1] == 3:
        return dataclasses.replace(batch, noisy=batch.noisy * matching_gain(batch.noisy, batch.clean, batch.mask))
    if batch.noisy.shape[1] == CFA_PLANES:
        mosaic, planes, sigma = batch.noisy.split((1, 3, 1), dim=1)
        gain = matching_gain(mosaic, (batch.clean * planes).sum(1, keepdim=True), batch.mask)
        return dataclasses.replace(batch, noisy=torch.cat([mosaic * gain, planes, sigma * gain], dim=1))
    noisy, clean = unpack_cfa(batch.noisy).unsqueeze(1), sample_cfa(batch.clean).unsqueeze(1)
    return dataclasses.replace(batch, noisy=batch.noisy * matching_gain(noisy, clean, batch.mask))


class Objective(nn.Module):
    """Weighted sum of losses between two pictures.

    losses    loss configs by kind
    transfer  what is done to both pictures in lin_rec2020 before they are compared; a curve weighs shadows as the eye
              does
    gain      who answers for brightness
    """

    def __init__(self, losses: Mapping[str, LossConfig], transfer: Transfer, gain: Gain = "absolute") -> None:
        super().__init__()
        self.losses = nn.ModuleDict({kind: config.build() for kind, config in losses.items()})
        self.weights = {kind: config.weight for kind, config in losses.items()}
        self.encode = _ENCODE[transfer]
        self.gain: Gain = gain

    @property
    def output_gain(self) -> OutputGain:
        """What a bundle must say of a network trained by this objective."""
        return "arbitrary" if self.gain == "match_target" else "absolute"

    def network_input(self, batch: Batch) -> Tensor:
        """(N, C, h, w) packed mosaics, CFA planes or pictures: what a network is to see, in training and validation."""
        return match_input(batch).noisy if self.gain == "match_input" else batch.noisy

    def settle_gain(self, camera_rgb: Tensor, batch: Batch) -> Tensor:
        """A network's output as it can be compared with `batch.clean` and judged: (N, 3, 2h, 2w) camera RGB."""
        return match_mean(camera_rgb, batch.clean, batch.mask) if self.gain == "match_target" else camera_rgb

    def compared(self, camera_rgb: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two pictures that the losses compare, output and target: (N, 3, 2h, 2w) after the transfer.

        What does not count becomes black first, in both. Left to the losses' masks, it would be too late: the gradient
        of a curve at infinity or NaN is NaN even where nothing asks for it.
        """
        matrix, mask = batch.xyz_to_camera, batch.mask
        output, target = only_valid(camera_rgb.float(), mask), only_valid(batch.clean, mask)
        if self.gain == "match_target":
            output = match_mean(output, target, mask)
        output, target = (camera_rgb_to_lin_rec2020(x, xyz_to_camera=matrix) for x in (output, target))
        if self.gain == "match_target":
            output = match_mean(output, target, mask)  # the matrix mixes colours, and so changes the mean
        return self.encode(output), self.encode(target)

    def forward(self, camera_rgb: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and each loss unweighted by its name: scalars, float32 even under autocast.

        camera_rgb  (N, 3, 2h, 2w) a network's output: at absolute scale, or at any when the gain is `match_target`
        """
        with torch.autocast(camera_rgb.device.type, enabled=False):
            output, target = self.compared(camera_rgb, batch)
            parts = {kind: loss(output, target, batch.mask) for kind, loss in self.losses.items()}
            total = torch.stack([self.weights[kind] * part for kind, part in parts.items()]).sum()
        return {"loss": total, **parts}
