"""From camera RGB, patch by patch, to files: DNG, EXR, TIFF, PNG, JPEG, JPEG XL."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from library.files.dng import Compression, write_cfa_dng, write_linear_dng
from library.files.exr import write_exr
from library.files.lossy import write_jpeg, write_jxl
from library.files.metadata import ImageMetadata
from library.files.picture import write_png, write_tiff16
from library.files.raw import RawImage
from library.inference.tiled import Patch
from library.ops.cfa import cfa_period, sample_cfa, shift_cfa
from library.ops.demosaic import demosaic_half_size
from library.ops.develop import auto_exposure_ev, camera_rgb_to_balanced_lin_rec2020, develop_camera_rgb
from library.ops.levels import denormalize_levels, dither, file_levels, normalize_levels, quantize

Format = Literal["dng", "cfa-dng", "exr", "tiff", "png", "jpeg", "jxl"]

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

    @property
    def levels(self) -> tuple[np.ndarray, int] | None:
        """Black by CFA site and white of the mosaic, in DN, which a mosaic made of it keeps; None: free to choose."""
        ...


class RawSource:
    """A raw that lies before us; how it is exposed is found out when somebody asks."""

    def __init__(self, raw: RawImage) -> None:
        self._raw = raw
        self.cfa = raw.cfa
        self.levels: tuple[np.ndarray, int] | None = (raw.black_level, raw.white_level)
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


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How formats that can be written in several ways are."""

    jpeg_quality: int = 92
    """1 to 100, as libjpeg counts it; above 90 colour is kept at full size."""
    jxl_distance: float = 1.0
    """Butteraugli distance, above 0 and up to 25: 1 is about the least that is visible."""
    dng_compression: Compression = "none"
    """lossless-jpeg: smaller by a quarter to a half, and slower to write."""

    def settings(self) -> dict[str, dict[str, Any]]:
        """By format, what changes its files; a compression that is not the usual one included."""
        dng = {} if self.dng_compression == "none" else {"compression": self.dng_compression}
        developed = {"jpeg": {"quality": self.jpeg_quality}, "jxl": {"distance": self.jxl_distance}}
        return developed | ({"dng": dng, "cfa-dng": dng} if dng else {})


USUAL = Encoding()


class Rendering:
    """A picture as the samples of one or several formats, all computed and nothing written."""

    def __init__(self, encoders: dict[Format, Encoder], pictures: dict[Format, np.ndarray], centre: Tensor) -> None:
        self._encoders = encoders
        self.pictures = pictures
        """By format, (height, width) or (height, width, 3) samples of those that are not written yet."""
        self.centre = centre
        """(3, h, w) camera RGB of `centre_of` the picture."""

    def write(self, outputs: Mapping[Format, str | Path]) -> None:
        """Write each format where it goes, once; each appears whole or not at all. Its samples are gone then.

        raises  ImageFileError, OSError for an output that cannot be written
        """
        for output_format, path in outputs.items():
            self._encoders[output_format].write(Path(path), self.pictures.pop(output_format))


CENTRE = 256
"""Pixels a side of the piece of every picture that is kept for a contact sheet."""


def centre_of(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a picture's middle, at most `CENTRE` a side, from even places so that a CFA stays its own."""
    rows, columns = min(height, CENTRE), min(width, CENTRE)
    top, left = (height - rows) // 4 * 2, (width - columns) // 4 * 2
    return slice(top, top + rows), slice(left, left + columns)


def render(
    patches: Iterable[Patch],
    height: int,
    width: int,
    formats: Iterable[Format],
    source: Source,
    metadata: ImageMetadata,
    encoding: Encoding = USUAL,
) -> Rendering:
    """Patches that cover a picture, in one pass, as the samples of one or several formats.

    patches  camera RGB in the raw's own pixels
    """
    encoders: dict[Format, Encoder] = {
        output_format: ENCODERS[output_format](source, metadata, encoding) for output_format in formats
    }
    pictures: dict[Format, np.ndarray] = {
        f: np.empty((height, width, *encoder.channels), encoder.dtype) for f, encoder in encoders.items()
    }
    rows, columns = centre_of(height, width)
    centre = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
    for patch in patches:
        for output_format, encoder in encoders.items():
            paste(pictures[output_format], patch.top, patch.left, encoder.encode(patch.pixels, patch.top, patch.left))
        _paste_part(centre, patch, rows.start, columns.start)
    return Rendering(encoders, pictures, torch.from_numpy(centre).permute(2, 0, 1))


def write_outputs(
    patches: Iterable[Patch],
    height: int,
    width: int,
    outputs: Mapping[Format, str | Path],
    source: Source,
    metadata: ImageMetadata,
    input_sha256: str,
    encoding: Encoding = USUAL,
) -> list[Written]:
    """Patches that cover a picture, in one pass, into files of one or several formats; each whole or not at all.

    patches  camera RGB in the raw's own pixels
    raises   ImageFileError for an output that cannot be written
    """
    return written(render(patches, height, width, outputs, source, metadata, encoding), outputs, input_sha256)


def written(rendering: Rendering, outputs: Mapping[Format, str | Path], input_sha256: str) -> list[Written]:
    """A rendering written, and what then lies there.

    raises  ImageFileError for an output that cannot be written
    """
    rendering.write(outputs)
    return [Written(f, str(path), _digest_of(path), input_sha256) for f, path in outputs.items()]


class Encoder(ABC):
    """How camera RGB becomes the samples of one kind of file, patch by patch, so that no full-size float picture is
    ever held."""

    suffix: str
    dtype: type
    channels: tuple[int, ...] = (3,)

    def __init__(self, source: Source, metadata: ImageMetadata, encoding: Encoding = USUAL) -> None:
        self.source = source
        self.metadata = metadata
        self.encoding = encoding

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
        return quantize((camera_rgb * (OUTPUT_WHITE - OUTPUT_BLACK)).add_(OUTPUT_BLACK)).permute(1, 2, 0).numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_linear_dng(
            path,
            picture,
            black_level=OUTPUT_BLACK,
            white_level=OUTPUT_WHITE,
            metadata=self.metadata,
            compression=self.encoding.dng_compression,
        )


class CfaDng(Encoder):
    """Mosaic DNG in the camera's own CFA and at its own levels, or at whole multiples of its steps: a sample that
    nothing has changed is the same number again. Dithered, so that what was denoised does not fall into bands."""

    suffix, dtype, channels = ".dng", np.uint16, ()

    @cached_property
    def levels(self) -> tuple[np.ndarray, int]:
        """Black by CFA site and white, in DN."""
        if self.source.levels is None:
            period = cfa_period(self.source.cfa)
            return np.full((period, period), float(OUTPUT_BLACK)), OUTPUT_WHITE
        return file_levels(*self.source.levels, room=OUTPUT_BLACK)

    def encode(self, camera_rgb: Tensor, top: int, left: int) -> np.ndarray:
        mosaic = sample_cfa(camera_rgb, shift_cfa(self.source.cfa, top, left))
        black_level, white_level = self.levels
        black_level = torch.from_numpy(np.roll(black_level, (-top, -left), (0, 1)).copy())
        counts = denormalize_levels(mosaic, black_level, float(white_level))
        height, width = counts.shape
        return quantize(counts + dither(height, width, top, left)).numpy()

    def write(self, path: Path, picture: np.ndarray) -> None:
        black_level, white_level = self.levels
        write_cfa_dng(
            path,
            picture,
            cfa=self.source.cfa,
            black_level=black_level,
            white_level=white_level,
            metadata=self.metadata,
            compression=self.encoding.dng_compression,
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
            "levels": self.metadata.levels or "",
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


class Jpeg(_Developed):
    suffix, dtype, code_values = ".jpg", np.uint8, 255

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_jpeg(path, *self.upright(picture), quality=self.encoding.jpeg_quality)


class Jxl(_Developed):
    """At 16 bits, from which JPEG XL keeps what its distance asks for."""

    suffix, dtype, code_values = ".jxl", np.uint16, 65535

    def write(self, path: Path, picture: np.ndarray) -> None:
        write_jxl(path, *self.upright(picture), distance=self.encoding.jxl_distance)


ENCODERS: dict[Format, type[Encoder]] = {
    "dng": LinearDng,
    "cfa-dng": CfaDng,
    "exr": Exr,
    "tiff": Tiff,
    "png": Png,
    "jpeg": Jpeg,
    "jxl": Jxl,
}


def bytes_per_pixel(formats: Iterable[Format]) -> int:
    """What a `Rendering` holds of each pixel."""
    return sum(np.dtype(e.dtype).itemsize * int(np.prod(e.channels)) for e in map(ENCODERS.__getitem__, formats))


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


def _paste_part(picture: np.ndarray, patch: Patch, top: int, left: int) -> None:
    """Put the part of a patch that lies in `picture`, whose own corner is at (top, left), where it belongs."""
    height, width = picture.shape[:2]
    y, x = patch.top - top, patch.left - left
    part = patch.pixels[:, max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    if part.numel():
        paste(picture, max(y, 0), max(x, 0), part.permute(1, 2, 0).numpy())


def _digest_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
