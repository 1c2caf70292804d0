"""Noise profiles of cameras: what a calibration found, as one JSON file.

    {"format": "stillgrain noise profile", "version": 1, "cameras": [{"make": "Canon", "model": "EOS 7D",
      "profiles": [{"iso": 100, "a": 3.5e-5, "b": 7e-7, ...}], "hot_pixels": [[y, x], ...]}]}

Variances are of single photosites, on black-subtracted, white-normalised values: Var(x) = a x + b.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from library.config import Frozen
from library.errors import DataError
from library.files.atomic import whole_file

FORMAT = "stillgrain noise profile"


class IsoProfile(Frozen):
    """The noise of a camera at one ISO."""

    iso: float = Field(gt=0)
    a: float = Field(gt=0)
    """Variance per unit of signal."""
    b: float = Field(ge=0)
    """Variance at black."""
    a_error: float = Field(ge=0)
    """Relative, one sigma."""
    num_files: int = Field(gt=0)
    """That it was estimated from."""
    row_noise: float | None = Field(default=None, ge=0)
    """Standard deviation of what whole rows are off by, from dark frames."""


class CameraProfile(Frozen):
    """One camera."""

    make: str
    model: str
    profiles: tuple[IsoProfile, ...]
    """By ISO, rising."""
    hot_pixels: tuple[tuple[int, int], ...] = ()
    """(row, column) in the active area, from dark frames: brighter than the rest in most of them."""

    def at(self, iso: float) -> tuple[float, float]:
        """(a, b) at an ISO: between two that are known on the line through them; beyond, a grows as the ISO, b as its
        square."""
        known = sorted(self.profiles, key=lambda profile: profile.iso)
        below = [p for p in known if p.iso <= iso] or known[:1]
        above = [p for p in known if p.iso >= iso] or known[-1:]
        low, high = below[-1], above[0]
        if low.iso == high.iso:
            gain = iso / low.iso
            return low.a * gain, low.b * gain**2
        share = (iso - low.iso) / (high.iso - low.iso)
        return low.a + share * (high.a - low.a), low.b + share * (high.b - low.b)


class NoiseProfiles(Frozen):
    """What a profile file holds."""

    format: Literal["stillgrain noise profile"] = FORMAT
    version: Literal[1] = 1
    cameras: tuple[CameraProfile, ...]

    def camera(self, make: str, model: str) -> CameraProfile | None:
        """The profile of a camera, whose names are compared without regard to case."""
        wanted = (make.casefold(), model.casefold())
        return next((c for c in self.cameras if (c.make.casefold(), c.model.casefold()) == wanted), None)


def write_noise_profiles(path: str | Path, profiles: NoiseProfiles) -> None:
    """The file, whole or not at all."""
    text = json.dumps(profiles.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_noise_profiles(path: str | Path) -> NoiseProfiles:
    """Raises `DataError` naming the file, and the key that is wrong."""
    try:
        return NoiseProfiles.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); `stillgrain calibrate` makes one") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: is no noise profile ({key}: {first['msg']}); `stillgrain calibrate` makes one"
        ) from None
