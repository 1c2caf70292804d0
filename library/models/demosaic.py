"""The identity: a demosaic and nothing else, or the picture as it came. The baseline that every denoiser must beat, and
a model like any other, so that the same code measures both."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import model_validator
from torch import Tensor, nn

from library.models.blocks.bilinear import BilinearDemosaic
from library.models.blocks.image_model import ImageModel, ModelConfig
from library.models.blocks.precision import full_precision
from library.models.blocks.reach import Geometry
from library.ops.cfa import unpack_cfa
from library.ops.cfa_planes import interpolate_cfa_planes
from library.ops.demosaic import demosaic_malvar
from library.ops.directional import AHD_REACH, MENON_REACH, demosaic_ahd, demosaic_menon


class Config(ModelConfig):
    kind: Literal["demosaic"] = "demosaic"
    in_channels: Literal[3, 4, 5] = 4
    """4: packed R, G1, G2, B; 5: CFA planes of Bayer or X-Trans; 3: lin_rec2020."""
    method: Literal["bilinear", "malvar", "ahd", "menon", "identity"] = "bilinear"
    """How the missing colours are found: ahd and menon look where edges run, the others are filters. CFA planes
    know `bilinear` only. Three-channel input is a picture already: `identity`."""

    @model_validator(mode="after")
    def _method_fits_input(self) -> Config:
        known = {3: ("identity",), 4: ("bilinear", "malvar", "ahd", "menon"), 5: ("bilinear",)}[self.in_channels]
        if self.method not in known:
            raise ValueError(
                f"method '{self.method}' does not fit in_channels {self.in_channels}: "
                "set method to 'identity' for 3 channels, to one of bilinear, malvar, ahd and menon for 4, and to "
                "'bilinear' for 5"
            )
        return self

    @property
    def geometry(self) -> Geometry:
        """Reach and lattice, measured. A decision stops what they are measured with, so those of methods that decide
        are known instead: of ahd and menon, and of CFA planes, which look two pixels far along the border only."""
        if self.in_channels == 5:
            return Geometry(2, 1)
        reach = {"ahd": AHD_REACH, "menon": MENON_REACH}.get(self.method)
        return super().geometry if reach is None else Geometry(reach // 2, 1)

    def build(self) -> Demosaic:
        return Demosaic(self)


class Demosaic(ImageModel):
    """(N, 4, h, w) packed mosaic -> (N, 3, 2h, 2w) camera RGB, (N, 5, H, W) CFA planes -> (N, 3, H, W), or (N, 3, H, W)
    lin_rec2020 -> same; any h and w."""

    parts: ClassVar = {}
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.scale = 2 if config.in_channels == 4 else 1
        self.method = _method(config)

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x):
            return self.method(x.float())


class _Interpolation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return interpolate_cfa_planes(x[:, :1], x[:, 1:4])


class _Function(nn.Module):
    def __init__(self, demosaic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.demosaic = demosaic

    def forward(self, packed: Tensor) -> Tensor:
        return self.demosaic(unpack_cfa(packed))


def _method(config: Config) -> nn.Module:
    if config.in_channels == 3:
        return nn.Identity()
    if config.in_channels == 5:
        return _Interpolation()
    if config.method == "bilinear":
        return BilinearDemosaic()
    return _Function({"malvar": demosaic_malvar, "ahd": demosaic_ahd, "menon": demosaic_menon}[config.method])
