"""From camera RGB, patch by patch, to files: DNG, EXR, TIFF, PNG."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from library.files.dng import write_cfa_dng, write_linear_dng
from library.files.exr import write_exr
from library.files.metadata import ImageMetadata
from library.files.picture import write_png, write_tiff16
from library.files.raw import RawImage
from library.inference.engine import Patch
from library.ops.cfa import sample_cfa
from library.ops.demosaic import demosaic_half_size
from library.ops.develop import auto_exposure_ev, camera_rgb_to_balanced_lin_rec2020, develop_camera_rgb
from library.ops.levels import normalize_levels, quantize

Format = Literal["dng", "cfa-dng", "exr", "tiff", "png"]

# Levels of the DNGs written here. Black is above 0, so that what a denoiser leaves below black survives the file.
OUTPUT_BLACK, OUTPUT_WHITE = 1024, 65535


class Source(Protocol):
    """What an output needs to know of the raw that its picture comes from."""

    @property
    def cfa(self) -> str: ...

    @property
    def as_shot_white_balance(self) -> np.ndarray | None: ...

    @property
    def xyz_to_camera(self) -> np.ndarray | None: ...

    @property
    def exposure_ev(self) -> float:
        """Stops by which a developed picture is exposed."""
        ...


class RawSource:
    """A raw that lies before us; how it is exposed is found out when somebody asks."""

    def __init__(self, raw: RawImage) -> None:
        self._raw = raw
        self.cfa = raw.cfa
        self.as_shot_white_balance = raw.as_shot_white_balance
        self.xyz_to_camera = raw.xyz_to_camera

    @property
    def exposure_ev(self) -> float:
        return self._exposure_ev

    @cached_property
    def _exposure_ev(self) -> float:
        return exposure_of(self._raw)


@dataclasses.dataclass(frozen=True)
class Written:
    """An output file."""

    format: Format
    path: str
    sha256: str
    input_sha256: str


def write_outputs(
    patches: Iterable[Patch],
    height: int,
    width: int,
    outputs: Mapping[Format, str | Path],
    source: Source,
    metadata: ImageMetadata,
    input_sha256: str,
) -> list[Written]:
    """Patches that cover a picture, in one pass, into files of one or several formats; each whole or not at all.

    patches  camera RGB in the raw's own pixels
    raises   ImageFileError for an output that cannot be written
    """
    encoders = {output_format: ENCODERS[output_format](source, metadata) for output_format in outputs}
    pictures = {f: np.empty((height, width, *encoder.channels), encoder.dtype) for f, encoder in encoders.items()}
    for patch in patches:
        for output_format, encoder in encoders.items():
            paste(pictures[output_format], patch.top, patch.left, encoder.encode(patch.pixels, patch.top, patch.left))
    written = []
    for output_format, path in outputs.items():
        encoders[output_format].write(Path(path), pictures.pop(output_format))
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        written.append(Written(output_format, str(path), digest, input_sha256))
    return written


class Encoder(ABC):
    """How camera RGB becomes the samples of one kind of file, patch by patch, so that no full-size float picture is
    ever held."""

    suffix: str
    dtype: type
    channels: tuple[int, ...] = (3,)

    def __init__(self, source: Source, metadata: ImageMetadata) -> None:
        self.source = source
        self.metadata = metadata

    @abstractmethod
    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        """(3, h, w) camera RGB of a patch at (top, left) -> (h, w) or (h, w, 3) samples."""

    @abstractmethod
    def write(self, path: Path, picture: np.ndarray) -> None:
        """Write the finished samples with their metadata, whole or not at all."""


class LinearDng(Encoder):
    """Demosaiced DNG: camera RGB, white balance and colour left free for the raw editor."""

    suffix, dtype = ".dng", np.uint16

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        return quantize(camera_rgb * (OUTPUT_WHITE - OUTPUT_BLACK) + OUTPUT_BLACK).permute(1, 2, 0).numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_linear_dng(path, picture, black_level=OUTPUT_BLACK, white_level=OUTPUT_WHITE, metadata=self.metadata)


class CfaDng(Encoder):
    """Mosaic DNG in the camera's own CFA, at 16 bits so that nothing denoised is rounded to the sensor's steps."""

    suffix, dtype, channels = ".dng", np.uint16, ()

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        phase = np.roll(np.array(list(self.source.cfa)).reshape(2, 2), (-top, -left), (0, 1))
        return quantize(
            sample_cfa(camera_rgb, "".join(phase.flat)) * (OUTPUT_WHITE - OUTPUT_BLACK) + OUTPUT_BLACK
        ).numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        black = np.full((2, 2), float(OUTPUT_BLACK))
        write_cfa_dng(
            path, picture, cfa=self.source.cfa, black_level=black, white_level=OUTPUT_WHITE, metadata=self.metadata
        )


class Exr(Encoder):
    """Scene-linear Rec.2020 as shot (white balanced), half float, unclipped, upright."""

    suffix, dtype = ".exr", np.float16

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        rgb = camera_rgb_to_balanced_lin_rec2020(
            camera_rgb,
            as_shot_white_balance=self.source.as_shot_white_balance,
            xyz_to_camera=self.source.xyz_to_camera,
        )
        return rgb.permute(1, 2, 0).half().numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        known = self.source.xyz_to_camera is not None
        attributes = {
            "whiteBalance": "as shot" if self.source.as_shot_white_balance is not None else "none: unknown",
            "colorMatrix": "camera" if known else "none: unknown, camera RGB taken as linear sRGB",
            "denoisedBy": self.metadata.denoised_by or "",
        }
        write_exr(
            path,
            upright(picture, self.metadata.orientation),
            chromaticities="rec2020",
            metadata=self.metadata,
            attributes=attributes,
        )


class _Developed(Encoder):
    """A picture to look at: sRGB, upright, exposed for its highlights."""

    code_values: int

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        srgb = develop_camera_rgb(
            camera_rgb,
            as_shot_white_balance=self.source.as_shot_white_balance,
            xyz_to_camera=self.source.xyz_to_camera,
            exposure_ev=self.source.exposure_ev,
        )
        return (srgb * self.code_values).round().permute(1, 2, 0).numpy().astype(self.dtype)

    def upright(self, picture: np.ndarray) -> tuple[np.ndarray, ImageMetadata]:
        turned = upright(picture, self.metadata.orientation)
        return turned, dataclasses.replace(self.metadata, orientation=1)


class Tiff(_Developed):
    suffix, dtype, code_values = ".tiff", np.uint16, 65535

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_tiff16(path, *self.upright(picture))


class Png(_Developed):
    suffix, dtype, code_values = ".png", np.uint8, 255

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_png(path, *self.upright(picture))


ENCODERS: dict[Format, type[Encoder]] = {"dng": LinearDng, "cfa-dng": CfaDng, "exr": Exr, "tiff": Tiff, "png": Png}


def exposure_of(raw: RawImage) -> float:
    """Stops that expose a raw for its highlights: from the noisy file at half size, so that every output of it gets the
    same."""
    mosaic = normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))
    rgb = demosaic_half_size(mosaic, cfa=raw.cfa)
    return auto_exposure_ev(rgb, as_shot_white_balance=raw.as_shot_white_balance, xyz_to_camera=raw.xyz_to_camera)


def upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A picture (H, W, ...) turned as its EXIF orientation (1 to 8; Exif 2.32, 4.6.4) asks for; a view."""
    if orientation in (2, 4, 5, 7):
        picture = picture[:, ::-1]
    return np.rot90(picture, {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation])


def paste(picture: np.ndarray, top: int, left: int, samples: np.ndarray) -> None:
    """Put the samples of a patch where they belong."""
    height, width = samples.shape[:2]
    picture[top : top + height, left : left + width] = samples
