"""What training of denoisers and of codecs share: the data, the losses between pictures, and pictures to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self, cast

from pydantic import Field, model_validator
from torch import Tensor
from upath import UPath

from library.bundle import Bundle
from library.codec_bundle import CodecBundle
from library.config import Component, mapping_of, one_of
from library.datasets.batch import Batch
from library.datasets.dataset import DatasetConfig
from library.files.atomic import whole_file
from library.files.exr import write_exr
from library.files.picture import write_png
from library.ops.cfa import unpack_cfa
from library.ops.cfa_planes import CFA_PLANES, interpolate_cfa_planes
from library.ops.color import camera_rgb_to_lin_rec2020, lin_rec2020_to_lin_srgb
from library.ops.demosaic import demosaic_malvar
from library.ops.transfer import srgb_encode
from library.training.checkpoint import checkpoints
from library.training.objective import Transfer
from workloads.launch import Host, LaunchConfig, RunResult, launch, starting_bundle


class PictureConfig(LaunchConfig):
    """Settings of a training whose output is compared with clean pictures; `model`, a subclass adds."""

    stage_keys: ClassVar[tuple[str, ...]] = (
        *LaunchConfig.stage_keys,
        "losses",
        "transfer",
        "dataset.crop",
        "dataset.flips",
    )

    dataset: one_of("library.datasets")  # pyright: ignore[reportInvalidTypeForm]
    losses: mapping_of("library.losses")  # pyright: ignore[reportInvalidTypeForm]
    """Losses by kind with their weights, compared in lin_rec2020: {ms_ssim: {weight: 0.2}, l1: {weight: 0.8}}."""
    transfer: Transfer = "none"
    """Curve applied to output and truth before the losses; a curve weighs shadows as the eye does."""
    num_pictures: int = Field(default=4, ge=0)
    """Validation scenes whose pictures are written: noisy, the network's and truth, as EXR and PNG."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        model = self.model  # pyright: ignore[reportAttributeAccessIssue]
        if not self.losses:
            raise ValueError("losses: name at least one, for example losses.l1.weight=1")
        if model.in_channels != self.dataset.planes:
            raise ValueError(
                f"model.in_channels is {model.in_channels}, but dataset '{self.dataset.kind}' yields "
                f"{self.dataset.planes} planes: set model.in_channels to {self.dataset.planes}"
            )
        for kind, loss in self.losses.items():
            if self.dataset.crop < loss.smallest_side:
                raise ValueError(
                    f"losses.{kind} needs crops of at least {loss.smallest_side} px a side (its coarsest scale must "
                    f"hold a window), but dataset.crop is {self.dataset.crop}: raise dataset.crop, or leave out "
                    f"losses.{kind}"
                )
        parts = model.parts
        for key, names in (("frozen", self.frozen), ("optim.lr_multipliers", self.optim.lr_multipliers)):
            if unknown := [name for name in names if name not in parts]:
                raise ValueError(
                    f"{key} names {', '.join(unknown)}, but model '{model.kind}' has the parts {', '.join(parts)}"
                )
        if set(parts) <= set(self.frozen):
            raise ValueError(
                f"nothing is left to train: model '{model.kind}' has the parts ({', '.join(parts)}), of which "
                f"({', '.join(self.frozen)}) are frozen; leave one out of frozen, or choose another model"
            )
        scale = 2 if self.dataset.planes == 4 else 1
        side = model.lattice * scale
        for key in ("crop", "validation_crop"):
            value = getattr(self.dataset, key)
            if value % side:
                raise ValueError(
                    f"dataset.{key} is {value}, but model '{model.kind}' needs a multiple of {side} px (its "
                    f"lattice of {model.lattice} {'packed ' if scale == 2 else ''}pixels): set dataset.{key} to "
                    f"{value // side * side + side}"
                )
        return self


def run_training(
    config: PictureConfig, model: Component, load: Callable[[UPath], Bundle | CodecBundle], host: Host
) -> RunResult:
    """Train as configured, on Ray or in this process; see `launch`.

    model  config of what is trained
    load   reads a bundle to start from, which is looked at before anything is started
    """
    if config.start_from is not None and not checkpoints(config.run_folder):
        starting_bundle(config, model, load)
    return launch(config, cast(DatasetConfig, config.dataset).prepare, host)


def write_pictures(folder: UPath, pictures: dict[str, Tensor]) -> None:
    """Pictures (3, H, W) in lin_rec2020 by name: linear EXR, and sRGB PNG to look at."""
    for name, lin_rec2020 in pictures.items():
        with whole_file(folder / f"{name}.exr") as temporary:
            write_exr(temporary, lin_rec2020.permute(1, 2, 0).numpy(), chromaticities="rec2020")
        srgb = srgb_encode(lin_rec2020_to_lin_srgb(lin_rec2020).clamp(0, 1))
        with whole_file(folder / f"{name}.png") as temporary:
            write_png(temporary, (srgb * 255).round().byte().permute(1, 2, 0).numpy())


def noisy_picture(batch: Batch) -> Tensor:
    """(N, 3, H, W): what the network was given, demosaiced if it is a mosaic (Malvar; CFA planes: interpolated)."""
    if batch.noisy.shape[1] == CFA_PLANES:
        return interpolate_cfa_planes(batch.noisy[:, :1], batch.noisy[:, 1:4])
    return demosaic_malvar(unpack_cfa(batch.noisy)) if batch.noisy.shape[1] == 4 else batch.noisy


def to_lin_rec2020(camera_rgb: Tensor, xyz_to_camera: Tensor) -> Tensor:
    """The first picture of a batch as `write_pictures` takes it: (1, 3, H, W) camera RGB -> (3, H, W) lin_rec2020."""
    return camera_rgb_to_lin_rec2020(camera_rgb, xyz_to_camera=xyz_to_camera)[0]
