"""What every data set of raw denoising yields, and every denoiser trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Noisy mosaics with their truth; float32, scene-linear, black at 0 and white at 1, unclipped (below 0 is legal in
    `noisy`)."""

    noisy: Tensor
    """(N, 4, h, w) packed R, G1, G2, B, no white balance; or (N, 5, H, W) CFA planes (`library.ops.cfa_planes`); or
    (N, 3, H, W) a picture in linear light."""
    clean: Tensor
    """(N, 3, 2h, 2w), or H x W, camera RGB of the same pixels."""
    mask: Tensor
    """(N, 1, 2h, 2w), 1 where the truth is below white and counts, 0 elsewhere."""
    xyz_to_camera: Tensor
    """(N, 3, 3), XYZ(D65) to camera RGB."""
    noise: Tensor
    """(N, 2): a and b of the noise in `noisy`, variance a * x + b."""

    @classmethod
    def stack(cls, items: Sequence[Batch]) -> Batch:
        """One batch of several, in order."""
        return cls(**{f.name: torch.cat([getattr(item, f.name) for item in items]) for f in fields(cls)})

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, contiguous, as they are written to a file."""
        return {f.name: getattr(self, f.name).contiguous() for f in fields(self)}

    def pinned(self) -> Self:
        """The same batch in page-locked memory, from which a GPU copies while it computes."""
        return replace(self, **{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def to(self, device: torch.device) -> Self:
        """The same batch on a device; images in channels_last, which the networks run in."""

        def moved(x: Tensor) -> Tensor:
            layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
            return x.to(device, non_blocking=True, memory_format=layout)

        return replace(self, **{f.name: moved(getattr(self, f.name)) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.noisy)
