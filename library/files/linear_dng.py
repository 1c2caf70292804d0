"""Reading the DNGs that hold demosaiced camera RGB, as this project writes them. LibRaw gives their samples too, but
neither their levels by channel nor their matrix.

Source: Digital Negative (DNG) Specification 1.4.0.0 (Adobe, 2012), chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from library.errors import ImageFileError
from library.files.parsers import metadata_or_nothing
from library.files.sizes import refuse_claims_beyond_reason

_LINEAR_RAW, _MAIN_IMAGE = 34892, 0
_BLACK_LEVEL, _WHITE_LEVEL, _COLOR_MATRICES, _ILLUMINANTS, _AS_SHOT_NEUTRAL = (
    50714,
    50717,
    (50721, 50722),
    (50778, 50779),
    50728,
)
_D65, _ORIENTATION = 21, 274


@dataclass(frozen=True, eq=False)
class LinearDng:
    """Demosaiced camera RGB without white balance. None: the file does not say.

    samples                uint16 (H, W, 3) DN
    black_level            (3,) DN
    white_level            (3,) DN at which a channel saturates
    as_shot_white_balance  (3,) R, G, B multipliers, G = 1
    xyz_to_camera          (3, 3), that for D65 where there is one
    orientation            EXIF code 1 to 8; the samples are not turned
    """

    path: str
    samples: np.ndarray
    black_level: np.ndarray
    white_level: np.ndarray
    as_shot_white_balance: np.ndarray | None
    xyz_to_camera: np.ndarray | None
    orientation: int

    @property
    def camera_rgb(self) -> np.ndarray:
        """float32 (H, W, 3), black at 0, white at 1, unclipped."""
        black, white = self.black_level.astype(np.float32), self.white_level.astype(np.float32)
        return (self.samples - black) / (white - black)


def is_linear_dng(path: str | Path) -> bool:
    """Whether a file is a DNG that holds demosaiced samples. False for what cannot be read."""
    with metadata_or_nothing(), tifffile.TiffFile(path) as file:
        return _page(file) is not None
    return False


def read_linear_dng(path: str | Path) -> LinearDng:
    """raises  ImageFileError for what is no linear DNG of 16 bits, is damaged, or has levels that make no sense"""
    try:
        with tifffile.TiffFile(path) as file:
            page = _page(file)
            if page is None:
                raise ImageFileError(path, "holds no demosaiced camera RGB: read it as a raw, or as a picture")
            refuse_claims_beyond_reason(path, page.imagelength, page.imagewidth, 2 * page.samplesperpixel)
            samples = page.asarray()
            black = _levels(page.tags, _BLACK_LEVEL, 0.0)
            white = _levels(page.tags, _WHITE_LEVEL, 65535.0)
            tags = file.pages.first.tags
            neutral = _numbers(tags, _AS_SHOT_NEUTRAL)
            matrix, orientation = _matrix(tags), int(tags.valueof(_ORIENTATION, 1))
    except ImageFileError:
        raise
    except Exception as error:
        raise ImageFileError(path, f"is damaged and cannot be decoded ({error}): copy or write it again") from error
    if samples.ndim != 3 or samples.shape[2] != 3 or samples.dtype != np.uint16:
        raise ImageFileError(path, f"has samples {samples.shape} of {samples.dtype}: it needs three of 16 bits a pixel")
    if not (black < white).all():
        raise ImageFileError(path, f"has a white level {white} not above its black level {black}: it is damaged")
    known = len(neutral) == 3 and min(neutral) > 0
    return LinearDng(
        path=str(path),
        samples=samples,
        black_level=black,
        white_level=white,
        as_shot_white_balance=neutral[1] / np.array(neutral) if known else None,
        xyz_to_camera=matrix,
        orientation=orientation if 1 <= orientation <= 8 else 1,
    )


def _page(file: tifffile.TiffFile) -> Any:
    first: Any = file.pages.first
    pages = [first, *(first.pages or ())]
    return next((p for p in pages if p.photometric == _LINEAR_RAW and p.subfiletype == _MAIN_IMAGE), None)


def _levels(tags: Any, number: int, otherwise: float) -> np.ndarray:
    levels = _numbers(tags, number) or [otherwise]
    return np.array(levels if len(levels) == 3 else levels[:1] * 3, np.float64)


def _matrix(tags: Any) -> np.ndarray | None:
    found = [
        (_numbers(tags, light), _numbers(tags, number))
        for light, number in zip(_ILLUMINANTS, _COLOR_MATRICES, strict=True)
    ]
    usable = [(light, values) for light, values in found if len(values) == 9 and any(values)]
    if not usable:
        return None
    return np.reshape(next((values for light, values in usable if light == [_D65]), usable[-1][1]), (3, 3))


def _numbers(tags: Any, number: int) -> list[float]:
    if (tag := tags.get(number)) is None:
        return []
    values = list(tag.value) if isinstance(tag.value, tuple) else [tag.value]
    if int(tag.dtype) in (5, 10):  # fractions
        return [a / b if b else 0.0 for a, b in zip(values[::2], values[1::2], strict=True)]
    return [float(value) for value in values]
