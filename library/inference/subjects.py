"""What a codec is given to code: a raw's mosaic, or a picture in linear light, with what its file must remember."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from library.errors import ImageFileError
from library.files.metadata import ImageMetadata
from library.files.picture import read_image
from library.files.raw import RawImage
from library.inference.develop import develop_raw
from library.inference.outputs import exposure_of, upright
from library.ops.cfa import mirror_pad, pack_cfa, pad_to_rggb, rggb_offset
from library.ops.color import XYZ_TO_LIN_REC2020, lin_rec2020_to_lin_srgb, lin_srgb_to_lin_rec2020
from library.ops.levels import normalize_levels
from library.ops.transfer import srgb_decode, srgb_encode

_THUMBNAIL_SIDE = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """A picture before it is coded.

    samples        (C, h, w) float32 scene-linear, unclipped, padded by mirrored lines to whole multiples of a side:
                   packed R, G1, G2, B of a mosaic, or lin_rec2020
    height, width  photosites, or pixels, without the padding
    noise          (a, b) of variance a * x + b, None when nobody knows
    image          what files made of it again should say
    """

    samples: Tensor
    height: int
    width: int
    layout: Literal["mosaic", "rgb"]
    cfa: str
    black_level: tuple[float, ...]
    white_level: float
    noise: tuple[float, float] | None
    sha256: str
    name: str
    image: ImageMetadata
    raw: RawImage | None = None

    @cached_property
    def exposure_ev(self) -> float:
        """Stops by which it is exposed when developed."""
        return exposure_of(self.raw) if self.raw is not None else 0.0

    def thumbnail(self) -> bytes:
        """A small JPEG, upright."""
        if self.raw is not None:
            srgb = develop_raw(self.raw)
        else:
            srgb = srgb_encode(lin_rec2020_to_lin_srgb(self.samples[:, : self.height, : self.width]).clamp(0, 1))
        pixels = (srgb * 255).round().byte().permute(1, 2, 0).numpy()
        picture = Image.fromarray(np.ascontiguousarray(upright(pixels, self.image.orientation)))
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        target = io.BytesIO()
        picture.save(target, "JPEG", quality=80)
        return target.getvalue()


def subject_of_raw(raw: RawImage, side: int) -> Subject:
    """A raw, padded to start at R and to multiples of `side` photosites. Raises `RawFileError` for X-Trans."""
    raw.require_bayer("codecs of raws take Bayer ones: denoise it to EXR or TIFF, and use a codec of pictures")
    mosaic = _padded(pad_to_rggb(torch.from_numpy(raw.mosaic), raw.cfa), side)
    black_level = torch.from_numpy(np.roll(raw.black_level, rggb_offset(raw.cfa), (0, 1)))
    return Subject(
        samples=pack_cfa(normalize_levels(mosaic, black_level, float(raw.white_level))),
        height=raw.height,
        width=raw.width,
        layout="mosaic",
        cfa=raw.cfa,
        black_level=tuple(raw.black_level.flatten().tolist()),
        white_level=float(raw.white_level),
        noise=_known_noise(raw),
        sha256=raw.sha256,
        name=Path(raw.path).name,
        image=raw.metadata(),
        raw=raw,
    )


def subject_of_picture(path: str | Path, side: int) -> Subject:
    """A picture file in linear light, padded to multiples of `side` pixels. Unknown primaries are taken as sRGB's.

    raises  ImageFileError for files that cannot be read or hold infinities
    """
    picture = read_image(path)
    rgb = torch.tensor(picture.rgb).permute(2, 0, 1)
    if not rgb.isfinite().all():
        raise ImageFileError(path, "holds infinities or NaN, which no codec can code: put them right first")
    if picture.encoding == "srgb":
        rgb = srgb_decode(rgb)
    if picture.color_space != "rec2020":
        rgb = lin_srgb_to_lin_rec2020(rgb)
    # A camera whose colours are Rec.2020's own, balanced: what is made of the file needs no second path.
    image = ImageMetadata(
        original_name=Path(path).name,
        xyz_to_camera=XYZ_TO_LIN_REC2020.numpy(),
        as_shot_white_balance=np.ones(3),
    )
    return Subject(
        samples=_padded(rgb.float(), side),
        height=rgb.shape[1],
        width=rgb.shape[2],
        layout="rgb",
        cfa="",
        black_level=(0.0, 0.0, 0.0, 0.0),
        white_level=1.0,
        noise=None,
        sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        name=Path(path).name,
        image=image,
    )


def _padded(image: Tensor, side: int) -> Tensor:
    """(..., H, W) mirrored at the lower and the right edge to multiples of a side."""
    height, width = image.shape[-2:]
    return mirror_pad(mirror_pad(image, -2, 0, -height % side), -1, 0, -width % side)


def _known_noise(raw: RawImage) -> tuple[float, float] | None:
    """Mean over the planes of the file's own NoiseProfile."""
    if not raw.noise_profile:
        return None
    a, b = np.mean(np.array(raw.noise_profile), axis=0)
    return (float(a), max(float(b), 0.0)) if a > 0 else None
