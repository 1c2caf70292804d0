"""From a network's output to a loss, in one place: camera matrix -> transfer -> mask -> weighted losses, all in
float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from library.datasets.batch import Batch
from library.losses import LossConfig
from library.ops.color import camera_rgb_to_lin_rec2020
from library.ops.transfer import gamma22_encode, pq_encode, root_encode, srgb_encode

Transfer = Literal["none", "root", "srgb", "gamma22", "pq"]
_CURVES = {"none": lambda x: x, "root": root_encode, "srgb": srgb_encode, "gamma22": gamma22_encode, "pq": pq_encode}


class Objective(nn.Module):
    """Weighted sum of losses between two pictures in lin_rec2020.

    losses    loss configs by kind
    transfer  curve applied to both pictures before they are compared; a curve weighs shadows as the eye does
    """

    def __init__(self, losses: Mapping[str, LossConfig], transfer: Transfer) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({kind: config.build() for kind, config in losses.items()})
        self.weights = {kind: config.weight for kind, config in losses.items()}
        self.curve = _CURVES[transfer]

    def forward(self, camera_rgb: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`loss`, and each loss unweighted by its name: scalars, float32 even under autocast.

        camera_rgb  (N, 3, 2h, 2w) a network's output at absolute scale
        """
        with torch.autocast(camera_rgb.device.type, enabled=False):
            output = self.curve(camera_rgb_to_lin_rec2020(camera_rgb.float(), xyz_to_camera=batch.xyz_to_camera))
            target = self.curve(camera_rgb_to_lin_rec2020(batch.clean, xyz_to_camera=batch.xyz_to_camera))
            parts = {kind: loss(output, target, batch.mask) for kind, loss in self.losses.items()}
            total = torch.stack([self.weights[kind] * part for kind, part in parts.items()]).sum()
        return {"loss": total, **parts}
