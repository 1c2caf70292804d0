"""The noise of cameras, estimated from their raws: a profile that training simulates and denoising is told by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from library.errors import RawFileError
from library.files.noise_profile import CameraProfile, IsoProfile, NoiseProfiles
from library.files.raw import RawImage, read_raw
from library.ops.cfa import BAYER_PHASES, crop_to_rggb, pack_cfa
from library.ops.levels import normalize_levels
from library.ops.photon_transfer import Blocks, PhotonTransfer, fit_photon_transfer

_HOT_SIGMAS = 8.0
"""How far above its neighbours' noise a photosite of a dark frame must be."""
_HOT_SHARE = 0.5
"""Of the dark frames, in which it must be so: a particle from space hits one."""
_MOST_UNEVEN = 2.0
"""Times the noise of neighbours that a dark frame may vary over its whole."""

Camera = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What the raws of one camera at one ISO showed."""

    make: str
    model: str
    iso: float
    files: tuple[str, ...]
    transfer: PhotonTransfer
    blocks: Blocks = field(repr=False)


@dataclass(frozen=True)
class Calibration:
    """What `calibrate_raws` came to."""

    measured: tuple[Measured, ...]
    """By camera and ISO; those with a doubt are not in the profiles."""
    profiles: NoiseProfiles
    failures: dict[str, str]
    """Raw file -> why it could not be used."""


def calibrate_raws(raws: Iterable[Path], dark: Iterable[Path] = ()) -> Calibration:
    """Photon and read noise by camera and ISO, row noise and hot pixels where there are dark frames.

    raws    flat pictures, or ordinary ones that have even places; Bayer, of any number of cameras and ISOs
    dark    frames with the lens covered

    A raw that cannot be used is among the failures and harms no other.
    """
    blocks: dict[tuple[str, str, float], list[Blocks]] = {}
    files: dict[tuple[str, str, float], list[str]] = {}
    failures: dict[str, str] = {}
    for path in raws:
        try:
            raw = _usable(read_raw(path))
            found = Blocks.of(pack_cfa(crop_to_rggb(_scene_linear(raw), raw.cfa)).numpy())
        except RawFileError as error:
            failures[str(path)] = str(error)
        else:
            key = (raw.make, raw.model, float(raw.iso or 0))
            blocks.setdefault(key, []).append(found)
            files.setdefault(key, []).append(str(path))
    frames = _read_dark(dark, failures)
    measured = []
    for key in sorted(blocks):
        joined = Blocks.join(blocks[key])
        measured.append(Measured(*key, tuple(files[key]), fit_photon_transfer(joined), joined))
    return Calibration(tuple(measured), _profiles(measured, frames), failures)


def _usable(raw: RawImage) -> RawImage:
    if raw.cfa not in BAYER_PHASES:
        raise RawFileError(raw.path, "is of an X-Trans sensor, whose noise calibration does not know: take Bayer raws")
    if raw.iso is None:
        raise RawFileError(raw.path, "does not say its ISO, by which a profile is looked up: leave it out")
    return raw


def _scene_linear(raw: RawImage) -> torch.Tensor:
    return normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))


# --- dark frames -----------------------------------------------------------------------------------------------------


@dataclass
class _Dark:
    """The dark frames of one camera."""

    row_noise: dict[float, list[float]] = field(default_factory=dict)
    """By ISO, of each frame."""
    num_frames: int = 0
    hot: np.ndarray | None = None
    """(H, W): in how many frames each photosite was hot."""

    def hot_pixels(self) -> tuple[tuple[int, int], ...]:
        if self.hot is None:
            return ()
        return tuple((int(y), int(x)) for y, x in np.argwhere(self.hot > _HOT_SHARE * self.num_frames))


def _read_dark(paths: Iterable[Path], failures: dict[str, str]) -> dict[Camera, _Dark]:
    cameras: dict[Camera, _Dark] = {}
    for path in paths:
        try:
            raw = _usable(read_raw(path))
            mosaic = _scene_linear(raw).numpy()
            if _shows_something(mosaic):
                raise RawFileError(path, "shows more than noise, so it is no dark frame: leave it out")
            row_noise, hot = measure_dark(mosaic)
            dark = cameras.setdefault((raw.make, raw.model), _Dark())
            if dark.hot is not None and dark.hot.shape != hot.shape:
                raise RawFileError(path, "is of another size than the dark frames before it: leave it out")
        except RawFileError as error:
            failures[str(path)] = str(error)
        else:
            dark.num_frames += 1
            dark.hot = hot.astype(np.int32) if dark.hot is None else dark.hot + hot
            dark.row_noise.setdefault(float(raw.iso or 0), []).append(row_noise)
    return cameras


def measure_dark(mosaic: np.ndarray) -> tuple[float, np.ndarray]:
    """
    mosaic   (H, W) of a frame without light, black at 0 and white at 1
    returns  row noise: standard deviation of what whole rows are off by, 0 where it drowns in the noise of their
             samples; and (H, W) bool, the photosites that are far brighter than noise explains
    """
    sigma = _robust_sigma(mosaic)
    hot = mosaic > np.median(mosaic) + max(_HOT_SIGMAS * sigma, 1e-6)
    rows = np.where(hot, np.nan, mosaic)
    # Neighbouring rows of the same colours: what drifts slowly from the top to the bottom is not row noise.
    means = np.nanmean(rows, axis=1)
    steps = (means[2:] - means[:-2]) / np.sqrt(2)
    own = sigma / np.sqrt(mosaic.shape[1])  # of the samples, which a row's mean has anyway
    return float(np.sqrt(max(_robust_sigma(steps) ** 2 - own**2, 0.0))), hot


def _shows_something(mosaic: np.ndarray) -> bool:
    neighbours = (mosaic[:, 2:] - mosaic[:, :-2]) / np.sqrt(2)
    return _robust_sigma(mosaic) > _MOST_UNEVEN * _robust_sigma(neighbours) + 1e-6


def _robust_sigma(x: np.ndarray) -> float:
    """From the median of absolute deviations, of a normal distribution."""
    return float(1.4826 * np.median(np.abs(x - np.median(x))))


def _profiles(measured: Sequence[Measured], frames: dict[Camera, _Dark]) -> NoiseProfiles:
    cameras = []
    for camera in sorted({(m.make, m.model) for m in measured}):
        dark = frames.get(camera, _Dark())
        profiles = tuple(
            IsoProfile(
                iso=m.iso,
                a=m.transfer.a,
                b=m.transfer.b,
                a_error=m.transfer.a_error,
                num_files=len(m.files),
                row_noise=float(np.median(dark.row_noise[m.iso])) if m.iso in dark.row_noise else None,
            )
            for m in measured
            if (m.make, m.model) == camera and m.transfer.doubt is None
        )
        if profiles:
            make, model = camera
            cameras.append(CameraProfile(make=make, model=model, profiles=profiles, hot_pixels=dark.hot_pixels()))
    return NoiseProfiles(cameras=tuple(cameras))
