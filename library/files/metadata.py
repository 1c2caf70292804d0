"""What is known about a photograph besides its samples, on the way from the raw file to the files made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from library.files import exif
from library.files.dng_tags import DngValue
from library.files.exif import ExifValue
from library.files.tiff import Tag, TagType

_USER_COMMENT = 37510


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageMetadata:
    """None and "" mean unknown, and what is unknown is not written. Change with `dataclasses.replace`.

    exposure_time           s
    focal_length            mm
    timestamp               ISO 8601 without zone, the camera's clock
    orientation             EXIF code 1 to 8 of the samples as they are stored
    pixel_aspect            width of a pixel over its height
    xyz_to_camera           (3, 3) for D65, as DNG's ColorMatrix
    as_shot_white_balance   (3,) R, G, B multipliers, G = 1
    noise_profile           (a, b) for all CFA planes or for each: variance a*x + b at x in [0, 1] (DNG NoiseProfile)
    exif                    whitelisted values by EXIF name (`library.files.exif.FIELDS`)
    cfa                     of the raw that the samples come from, from the top-left of its active area
    dng                     what a raw that was a DNG tells beyond these, by name (`library.files.dng_tags.FIELDS`)
    denoised_by             the bundle that made the samples; marks the file, so that nobody denoises it again
    levels                  how a denoised raw's counts became light: its black level, and which white level counted
    """

    make: str = ""
    model: str = ""
    iso: float | None = None
    exposure_time: float | None = None
    f_number: float | None = None
    focal_length: float | None = None
    timestamp: str | None = None
    orientation: int = 1
    pixel_aspect: float = 1.0
    xyz_to_camera: np.ndarray | None = None
    as_shot_white_balance: np.ndarray | None = None
    noise_profile: tuple[tuple[float, float], ...] | None = None
    exif: Mapping[str, ExifValue] = field(default_factory=dict)
    cfa: str = ""
    dng: Mapping[str, DngValue] = field(default_factory=dict)
    original_name: str = ""
    software: str = "Stillgrain"
    denoised_by: str | None = None
    levels: str | None = None

    @property
    def camera(self) -> str:
        """Make and model without saying the maker twice, "" when both are unknown."""
        if self.model.casefold().startswith(self.make.casefold()):
            return self.model
        return f"{self.make} {self.model}".strip()

    @property
    def exif_time(self) -> str | None:
        """`timestamp` as EXIF writes it."""
        return self.timestamp[:19].replace("-", ":").replace("T", " ") if self.timestamp else None


def metadata_tags(metadata: ImageMetadata) -> tuple[list[Tag], list[Tag]]:
    """The tags that a picture and a DNG have in common: those of IFD0 and those of the EXIF IFD."""
    ifd0 = [
        Tag(274, TagType.SHORT, metadata.orientation),
        *(
            Tag(number, TagType.ASCII, text)
            for number, text in ((exif.MAKE, metadata.make), (exif.MODEL, metadata.model), (305, metadata.software))
            if text
        ),
        *exif.exif_tags(metadata.exif, in_ifd0=True),
    ]
    values = {
        name: value for name, value in metadata.exif.items() if name != "DateTimeOriginal" or not metadata.timestamp
    }
    details = [Tag(36864, TagType.UNDEFINED, b"0232"), *exif.exif_tags(values, in_ifd0=False)]  # ExifVersion
    if metadata.levels:
        comment = b"ASCII\0\0\0" + metadata.levels.encode("ascii", "replace")
        details.append(Tag(_USER_COMMENT, TagType.UNDEFINED, comment))
    for number, value in (
        (exif.EXPOSURE_TIME, metadata.exposure_time),
        (exif.F_NUMBER, metadata.f_number),
        (exif.FOCAL_LENGTH, metadata.focal_length),
    ):
        if value:
            details.append(Tag(number, TagType.RATIONAL, value))
    if metadata.exif_time:
        details.append(Tag(exif.DATE_TIME_ORIGINAL, TagType.ASCII, metadata.exif_time))
    if metadata.iso:
        iso = round(metadata.iso)
        details.append(Tag(exif.ISO, TagType.SHORT, min(iso, exif.ISO_CEILING)))
        if iso >= exif.ISO_CEILING:
            details.append(Tag(exif.SENSITIVITY_TYPE, TagType.SHORT, 2))  # "recommended exposure index"
            details.append(Tag(exif.RECOMMENDED_EXPOSURE_INDEX, TagType.LONG, iso))
    return ifd0, details
