"""A raw file in, a denoised file out: the same code with and without Ray."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from library.errors import ImageFileError
from library.files.dng import write_cfa_dng, write_linear_dng
from library.files.exr import write_exr
from library.files.metadata import ImageMetadata
from library.files.picture import write_png, write_tiff16
from library.files.raw import RawImage, read_raw
from library.inference.engine import Engine
from library.ops.cfa import sample_cfa
from library.ops.demosaic import demosaic_half_size
from library.ops.develop import auto_exposure_ev, camera_rgb_to_balanced_lin_rec2020, develop_camera_rgb
from library.ops.levels import normalize_levels, quantize

Format = Literal["dng", "cfa-dng", "exr", "tiff", "png"]

# Levels of the DNGs written here. Black is above 0, so that what a denoiser leaves below black survives the file.
_BLACK, _WHITE = 1024, 65535


@dataclasses.dataclass(frozen=True)
class Written:
    """An output file."""

    format: Format
    path: str
    sha256: str
    input_sha256: str


def denoise_raw(raw: RawImage, engine: Engine) -> np.ndarray:
    """The whole denoised picture in memory, for a notebook.

    returns  (H, W, 3) float32 camera RGB in the raw's own pixels: black at 0, white at 1, no white balance, not turned
             upright
    """
    picture = np.empty((raw.height, raw.width, 3), np.float32)
    for patch in engine.camera_rgb(raw):
        _paste(picture, patch.top, patch.left, patch.pixels.permute(1, 2, 0).numpy())
    return picture


def denoise_file(raw_path: str | Path, outputs: Mapping[Format, str | Path], engine: Engine) -> list[Written]:
    """Denoise one raw file, in one pass, into files of one or several formats; each appears whole or not at all.

    outputs  where each format goes
    raises   RawFileError for an input that cannot be used; ImageFileError for an output that cannot be written
    """
    raw = read_raw(raw_path)
    for path in map(Path, outputs.values()):
        if path.exists() and path.samefile(raw_path):
            raise ImageFileError(path, "is the raw file itself, which would be lost: give another folder")
    # The noise profile of the input does not describe the output.
    metadata = dataclasses.replace(
        raw.metadata(), denoised_by=f"{engine.bundle.name} sha256:{engine.bundle.digest}", noise_profile=None
    )
    encoders = {output_format: ENCODERS[output_format](raw, metadata) for output_format in outputs}
    pictures = {
        f: np.empty((raw.height, raw.width, *encoder.channels), encoder.dtype) for f, encoder in encoders.items()
    }
    for patch in engine.camera_rgb(raw):
        for output_format, encoder in encoders.items():
            _paste(pictures[output_format], patch.top, patch.left, encoder.encode(patch.pixels, patch.top, patch.left))
    written = []
    for output_format, path in outputs.items():
        encoders[output_format].write(Path(path), pictures.pop(output_format))
        written.append(
            Written(output_format, str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest(), raw.sha256)
        )
    return written


class Encoder(ABC):
    """How camera RGB becomes the samples of one kind of file, patch by patch, so that no full-size float picture is
    ever held."""

    suffix: str
    dtype: type
    channels: tuple[int, ...] = (3,)

    def __init__(self, raw: RawImage, metadata: ImageMetadata) -> None:
        self.raw = raw
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
        return quantize(camera_rgb * (_WHITE - _BLACK) + _BLACK).permute(1, 2, 0).numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_linear_dng(path, picture, black_level=_BLACK, white_level=_WHITE, metadata=self.metadata)


class CfaDng(Encoder):
    """Mosaic DNG in the camera's own CFA, at 16 bits so that nothing denoised is rounded to the sensor's steps."""

    suffix, dtype, channels = ".dng", np.uint16, ()

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        phase = np.roll(np.array(list(self.raw.cfa)).reshape(2, 2), (-top, -left), (0, 1))
        return quantize(sample_cfa(camera_rgb, "".join(phase.flat)) * (_WHITE - _BLACK) + _BLACK).numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        black = np.full((2, 2), float(_BLACK))
        write_cfa_dng(path, picture, cfa=self.raw.cfa, black_level=black, white_level=_WHITE, metadata=self.metadata)


class Exr(Encoder):
    """Scene-linear Rec.2020 as shot (white balanced), half float, unclipped, upright."""

    suffix, dtype = ".exr", np.float16

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        raw = self.raw
        rgb = camera_rgb_to_balanced_lin_rec2020(
            camera_rgb, as_shot_white_balance=raw.as_shot_white_balance, xyz_to_camera=raw.xyz_to_camera
        )
        return rgb.permute(1, 2, 0).half().numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        known = self.raw.xyz_to_camera is not None
        attributes = {
            "whiteBalance": "as shot" if self.raw.as_shot_white_balance is not None else "none: unknown",
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

    def __init__(self, raw: RawImage, metadata: ImageMetadata) -> None:
        super().__init__(raw, metadata)
        self.exposure_ev = exposure_of(raw)

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        srgb = develop_camera_rgb(
            camera_rgb,
            as_shot_white_balance=self.raw.as_shot_white_balance,
            xyz_to_camera=self.raw.xyz_to_camera,
            exposure_ev=self.exposure_ev,
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


def _paste(picture: np.ndarray, top: int, left: int, samples: np.ndarray) -> None:
    height, width = samples.shape[:2]
    picture[top : top + height, left : left + width] = samples
