"""Sensors to simulate: a camera matrix and Poisson-Gaussian noise, drawn from published ranges or from a table of real
cameras.

Noise is Var(x) = a x + b on black-subtracted, white-normalised values (Foi et al. 2008), the same for all planes: real
raws have equal gain in all of them before white balance.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from library.config import Frozen, Location
from library.errors import DataError
from library.files import noise_profile
from library.ops.color import D65_WHITE_XYZ

# Four measured XYZ -> camera matrices, and the ranges of the white-balance gains under daylight, of Brooks et al. 2019,
# "Unprocessing Images for Learned Raw Denoising", section 3.2 and its published code.
_MATRICES = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
_RED_GAIN, _BLUE_GAIN = (1.9, 2.4), (1.5, 1.9)
_WHITE = D65_WHITE_XYZ.numpy()
_SCALE_OF_OTHERS = 7.0


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the range {list(value)} ends before it begins: give [smallest, largest]")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""[smallest, largest]."""


@dataclass(frozen=True)
class Sensor:
    """One camera at one ISO."""

    xyz_to_camera: np.ndarray
    """(3, 3) float64, scaled so that a D65 white of luminance 1 brings green to 1."""
    a: float
    """Variance per unit of signal."""
    b: float
    """Variance at black."""

    @property
    def as_shot_white_balance(self) -> np.ndarray:
        """(3,) gains that make D65 neutral, green 1."""
        white = self.xyz_to_camera @ _WHITE
        return white[1] / white


class ParametricSensor(Frozen):
    """Brooks et al. 2019, section 3.1: shot noise log-uniform, read noise log-linear in it with normal scatter."""

    kind: Literal["parametric"] = "parametric"
    shot: Range = (1e-4, 1.2e-2)
    """Range of a, the variance per unit of signal."""
    read_slope: float = 2.18
    """log b = read_slope * log a + read_intercept + N(0, read_scatter)."""
    read_intercept: float = 1.20
    read_scatter: float = Field(default=0.26, ge=0)

    def draw(self, rng: np.random.Generator) -> Sensor:
        """One sensor; consumes the same number of random numbers each time."""
        log_a = rng.uniform(math.log(self.shot[0]), math.log(self.shot[1]))
        log_b = self.read_slope * log_a + self.read_intercept + self.read_scatter * rng.standard_normal()
        return Sensor(draw_matrix(rng), math.exp(log_a), math.exp(log_b))


class ProfiledSensor(Frozen):
    """Noise of real cameras from a table that the user has: each camera equally likely, then each of its ISO values."""

    kind: Literal["profiles"] = "profiles"
    table: Location
    """What `stillgrain calibrate` wrote; or CSV with columns maker, model, iso, a_g, b_g (and optionally skip), or
    darktable's noiseprofiles.json."""
    iso: Range = (100, 25600)
    """ISO values to draw from."""
    scale: float | None = Field(default=None, gt=0)
    """Factor from the table's variances to those of a mosaic. Left out, 1 for our own profiles, and 7 for others:
    darktable's, measured after interpolation, are 6 to 10 times below photosite noise."""

    def draw(self, rng: np.random.Generator) -> Sensor:
        """One sensor. Raises `DataError` when the table cannot be used or holds no row in the range."""
        cameras = _profiles(self.table, *self.iso)
        rows = cameras[rng.integers(len(cameras))]
        a, b = rows[rng.integers(len(rows))]
        scale = self.scale if self.scale is not None else 1.0 if _is_ours(self.table) else _SCALE_OF_OTHERS
        return Sensor(draw_matrix(rng), a * scale, b * scale)


AnySensor = Annotated[ParametricSensor | ProfiledSensor, Field(discriminator="kind")]


def draw_matrix(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) float64 XYZ(D65) -> camera RGB: a random mix of measured matrices under a random daylight balance."""
    mixed = np.tensordot(rng.dirichlet(np.ones(len(_MATRICES))), _MATRICES, axes=1)
    white = np.array([1 / rng.uniform(*_RED_GAIN), 1.0, 1 / rng.uniform(*_BLUE_GAIN)])
    return (white / (mixed @ _WHITE))[:, None] * mixed


@functools.lru_cache(maxsize=4)
def _profiles(table: str, min_iso: float, max_iso: float) -> list[list[tuple[float, float]]]:
    """(a, b) of green by camera and ISO. Placeholder rows (a <= 0, or marked skip) are left out; a negative b counts as
    0."""
    try:
        text = Path(table).read_text(encoding="utf-8")
        if _is_ours(table):
            rows = _rows_of_ours(table)
        else:
            rows = _rows_of_json(text) if text.lstrip().startswith("{") else _rows_of_csv(text)
    except OSError as error:
        raise DataError(
            f"{table}: cannot be read ({error.strerror}); give a CSV of profiles or darktable's noiseprofiles.json"
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{table}: is not a table of noise profiles ({error!r}); it needs maker, model, iso, a_g and b_g"
        ) from None
    cameras: dict[tuple[str, str], dict[float, tuple[float, float]]] = {}
    for maker, model, iso, a, b in rows:
        if min_iso <= iso <= max_iso and a > 0:
            cameras.setdefault((maker, model), {}).setdefault(iso, (a, max(b, 0.0)))
    if not cameras:
        raise DataError(f"{table}: has no usable profile between ISO {min_iso:g} and {max_iso:g}; widen sensor.iso")
    return [list(by_iso.values()) for _, by_iso in sorted(cameras.items())]


@functools.lru_cache(maxsize=4)
def _is_ours(table: str) -> bool:
    with open(table, encoding="utf-8") as file:
        return noise_profile.FORMAT in file.read(1000)


def _rows_of_ours(table: str) -> list[tuple[str, str, float, float, float]]:
    return [
        (camera.make, camera.model, profile.iso, profile.a, profile.b)
        for camera in noise_profile.read_noise_profiles(table).cameras
        for profile in camera.profiles
    ]


def _rows_of_csv(text: str) -> list[tuple[str, str, float, float, float]]:
    return [
        (row["maker"], row["model"], float(row["iso"]), float(row["a_g"]), float(row["b_g"]))
        for row in csv.DictReader(text.splitlines())
        if row.get("skip", "0") in ("", "0")
    ]


def _rows_of_json(text: str) -> list[tuple[str, str, float, float, float]]:
    return [
        (maker["maker"], model["model"], float(profile["iso"]), float(profile["a"][1]), float(profile["b"][1]))
        for maker in json.loads(text)["noiseprofiles"]
        for model in maker["models"]
        for profile in model["profiles"]
        if not profile.get("skip", False)
    ]
