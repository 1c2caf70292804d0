"""The names that RawNIND's files are downloaded under (Brummer and De Vleeschouwer 2025, doi:10.14428/DVN/DEQCIM):
`<Bayer|X-Trans>_<scene>_[GT_]ISO<label>_sha1=<40 hex digits>.<suffix>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SENSORS = ("Bayer", "X-Trans")
EXIF_ISO_CEILING = 65535
"""What EXIF's 16 bits say of any ISO from there up: no ISO itself."""

# The scene takes all it can: it may hold underscores, and even an `_ISO` of its own.
_NAME = re.compile(
    r"(?P<sensor>Bayer|X-Trans)_(?P<scene>[^/\x00]+?)(?P<gt>_GT)?_ISO(?P<iso_label>(?:(?!_ISO)[^/\x00])*)"
    r"_sha1=(?P<sha1>[0-9a-f]{40})(?P<suffix>(?:\.\w+)+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RawNindName:
    """A file name taken apart.

    scene      with its prefix TEST_, UNK_ or UNK_TEST_, which belong to the name
    gt         whether it is a clean image
    iso_label  what follows ISO: digits, or `Hi 3200`, `Unknown`
    sha1       of the raw file
    suffix     `.arw`; with that of a sidecar, `.arw.xmp`
    """

    name: str
    sensor: str
    scene: str
    gt: bool
    iso_label: str
    sha1: str
    suffix: str

    @property
    def iso(self) -> float | None:
        """The number in the label; None where there is none, or only the greatest that EXIF can say."""
        digits = re.search(r"\d+", self.iso_label)
        iso = int(digits.group()) if digits else 0
        return float(iso) if 0 < iso < EXIF_ISO_CEILING else None

    @property
    def is_sidecar(self) -> bool:
        """Whether `sha1` is that of another file, which this one belongs to."""
        return self.suffix.lower().endswith(".xmp")

    @property
    def place(self) -> str:
        """Where the file belongs below the root of the tree: `<sensor>/<scene>/[gt/]<name>`."""
        return f"{self.sensor}/{self.scene}/{'gt/' if self.gt else ''}{self.name}"


def parse_name(name: str) -> RawNindName | None:
    """Takes a download name apart; None for any other name.

    name  without a folder. Its case does not matter, but for the scene's
    """
    found = _NAME.fullmatch(name)
    # A scene called `..` would lead out of the tree.
    if found is None or not found["scene"].strip("."):
        return None
    sensor = next(sensor for sensor in SENSORS if sensor.lower() == found["sensor"].lower())
    sha1, is_gt = found["sha1"].lower(), found["gt"] is not None
    return RawNindName(name, sensor, found["scene"], is_gt, found["iso_label"], sha1, found["suffix"])
