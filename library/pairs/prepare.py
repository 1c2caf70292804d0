"""From a scene's raw files to what is trained on: mosaics, masks, and a row for each clean and noisy image.

    arrays/<scene>/<sha256>.mosaic.npy             every Bayer raw, brought to RGGB by dropping lines, as recorded
    arrays/<scene>/<sha256>.picture.npy            every picture in linear light, and X-Trans raw: half floats
    arrays/<scene>/<sha256>.json                   what else is known of an image
    arrays/<scene>/<sha256>.<demosaic>.target.npy  a clean raw's camera RGB, half floats
    arrays/<scene>/<gt>-<f>.mask.npy, .json        a pair's mask, and its row
    arrays/<scene>/files.json                      which bytes each file of the tree had, and why one could not be read

Each appears whole or not at all, a pair's row last. So whatever is there is right, a second run does what is missing,
and two at once do the same work twice and no harm. What a row was made of and how is in its `key`.

The truth is demosaiced once and stored as half floats. Crops of 256 pixels then come 3.5 times as fast as when each is
demosaiced from the mosaic with a halo by the best method (830 against 237 a second of one core), and as a crop's line
is shorter than a page of the disk either way, no more pages are read. It takes 6 bytes a pixel beside the mosaic's 2,
but only one file in five of RawNIND is clean, so that the whole grows by half. Half floats are finer than the photon
noise of a base ISO. `targets: recomputed` is for little disk, or to try methods on what is prepared already. See
`tests/benchmarks/bench_prepare.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, field_validator

from library.config import Frozen
from library.errors import DataError, ImageFileError, RawFileError, StillgrainError
from library.files.atomic import whole_file
from library.files.markesteijn import demosaic_markesteijn
from library.files.picture import DisplayImage, read_image
from library.files.raw import RAW_SUFFIXES, RawImage, read_raw
from library.metrics import MS_SSIM_SMALLEST_SIDE
from library.ops.cfa import BAYER_PHASES, pack_cfa, rggb_offset
from library.ops.color import LIN_REC2020_TO_XYZ, LIN_SRGB_TO_XYZ
from library.ops.levels import normalize_levels
from library.ops.noise_estimate import estimate_noise
from library.pairs import quality
from library.pairs.align import Alignment, Matching, Mosaic, align
from library.pairs.check import exposure
from library.pairs.index import Failure, Pair, Row, Sensor, row_of
from library.pairs.masks import Anomalies, anomaly_mask, overexposure_mask, pack_mask, valid_fraction
from library.pairs.names import parse_name
from library.pairs.shift import Overlap, overlap
from library.pairs.store import (
    DEMOSAICS,
    balanced_demosaic,
    demosaic_named,
    demosaic_part,
    mask_file,
    mosaic_file,
    normalized_mosaic,
    picture_file,
    target_file,
)
from library.pairs.tree import Scene

VERSION = 2
"""Counts up when the same files and settings would give other rows or arrays."""
SMALLEST_SIDE = 128
_BADLY_EXPOSED = 0.75
"""Of an image that may be clipped or black."""
_NOISE_SIDE = 1024
"""Photosites a side of the middle part that tells an image's noise."""


class Settings(Frozen):
    """How a pair is made of two files. Every value changes what comes out, and so makes new work."""

    matching: Matching = Matching()
    anomalies: Anomalies = Anomalies()
    overexposure_reach: int = Field(default=2, ge=0)
    """Pixels around a clipped photosite that do not count: what demosaicing spreads it to."""
    demosaic: str = "menon"
    """For masks, scores and stored targets: bilinear, malvar, ahd or menon."""
    targets: Literal["stored", "recomputed"] = "stored"
    """Whether clean images are kept demosaiced, as half floats, or demosaiced anew for each crop."""
    tile: int = Field(default=1024, ge=256, multiple_of=2)
    """Pixels a side that are compared at a time, about; memory grows with its square. The MS-SSIM of a larger image is
    the mean of its tiles'."""

    @field_validator("demosaic")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in DEMOSAICS:
            raise ValueError(f"unknown method '{name}'; known: {', '.join(DEMOSAICS)}")
        return name


class Reader(Protocol):
    """What reads files: in this process, or `library.files.isolate.IsolatedReader` in another."""

    def read_raw(self, path: Path) -> RawImage: ...

    def read_image(self, path: Path) -> DisplayImage: ...


class DirectReader:
    """In this process."""

    def read_raw(self, path: Path) -> RawImage:
        return read_raw(path)

    def read_image(self, path: Path) -> DisplayImage:
        return read_image(path)


# --- one image --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Image:
    """What is known of one file, beside its samples; fields as in `library.pairs.index.Pair`.

    array     its samples, relative to the prepared folder: a mosaic, or the half floats of a picture
    unusable  why nothing can be learnt from it, None if something can
    """

    sha256: str
    sensor: Sensor
    camera: str
    iso: float | None
    cfa: str | None
    height: int
    width: int
    black_level: tuple[float, ...] | None
    white_level: int | None
    overexposure_lb: float
    white_balance: tuple[float, ...]
    noise_a: float
    noise_b: float
    xyz_to_camera: tuple[float, ...] | None
    array: str
    unusable: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Image:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def ingest(path: Path, scene: str, folder: Path, reader: Reader) -> Image:
    """Read a file and keep its samples in the prepared folder.

    raises  RawFileError or ImageFileError for a file that cannot be used; OSError for a folder that cannot be written
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raw = reader.read_raw(path)
        image, array = _bayer(raw, scene) if raw.cfa in BAYER_PHASES else _xtrans(raw, scene)
    else:
        image, array = _picture(path, reader.read_image(path), scene)
    if min(image.size) < SMALLEST_SIDE:
        reason = f"has {image.height} x {image.width} pixels, and pairs need {SMALLEST_SIDE} a side: leave it out"
        raise RawFileError(path, reason)
    save_array(folder / image.array, array)
    _write_json(folder / _image_file(scene, image.sha256), asdict(image))
    return image


def _bayer(raw: RawImage, scene: str) -> tuple[Image, np.ndarray]:
    dy, dx = rggb_offset(raw.cfa)
    height, width = ((n - d) // 2 * 2 for n, d in zip(raw.mosaic.shape, (dy, dx), strict=True))
    mosaic = raw.mosaic[dy : dy + height, dx : dx + width]
    black, clipping = (np.roll(levels, (-dy, -dx), (0, 1)) for levels in (raw.black_level, raw.clipping_level))
    levels = tuple(float(level) for level in black.flat)
    noise = _profile(raw) or _noise_of(normalized_mosaic(_middle(mosaic), levels, raw.white_level))
    image = _image_of_raw(raw, mosaic.shape, mosaic_file(scene, raw.sha256), noise)
    lb = (clipping - black) / (raw.white_level - black)
    return replace(
        image, cfa="RGGB", black_level=levels, white_level=raw.white_level, overexposure_lb=float(min(1, lb.min()))
    ), mosaic


def _xtrans(raw: RawImage, scene: str) -> tuple[Image, np.ndarray]:
    """Demosaiced, since shifts would not keep the phase of a tile of 6 x 6."""
    mosaic = normalize_levels(
        torch.from_numpy(raw.mosaic.astype(np.float32)), torch.from_numpy(raw.black_level), float(raw.white_level)
    )
    balance = None if raw.as_shot_white_balance is None else raw.as_shot_white_balance
    rgb = demosaic_markesteijn(mosaic, cfa=raw.cfa, as_shot_white_balance=balance)
    picture = _half(rgb.permute(1, 2, 0).numpy())
    noise = _profile(raw) or _noise_of_picture(picture)
    image = _image_of_raw(raw, picture.shape[:2], picture_file(scene, raw.sha256), noise)
    lb = (raw.clipping_level - raw.black_level) / (raw.white_level - raw.black_level)
    return replace(image, sensor="X-Trans", overexposure_lb=float(min(1, lb.min()))), picture


def _image_of_raw(raw: RawImage, size: tuple[int, ...], array: str, noise: tuple[float, float]) -> Image:
    over, under, both = exposure(raw)
    balance = raw.as_shot_white_balance
    return Image(
        sha256=raw.sha256,
        sensor="Bayer",
        camera=raw.metadata().camera,
        iso=raw.iso,
        cfa=None,
        height=size[0],
        width=size[1],
        black_level=None,
        white_level=None,
        overexposure_lb=1.0,
        white_balance=(1.0, 1.0, 1.0) if balance is None else tuple(float(gain) for gain in balance),
        noise_a=noise[0],
        noise_b=noise[1],
        xyz_to_camera=None if raw.xyz_to_camera is None else tuple(float(x) for x in raw.xyz_to_camera.flat),
        array=array,
        unusable=f"is badly exposed: {over:.0%} of it is clipped and {under:.0%} black"
        if both > _BADLY_EXPOSED
        else None,
    )


def _picture(path: Path, shown: DisplayImage, scene: str) -> tuple[Image, np.ndarray]:
    """An EXR or TIFF in linear light, as RawNIND has its X-Trans images."""
    if shown.encoding != "linear":
        raise ImageFileError(path, "is a picture for a display, not in linear light: give a floating-point EXR or TIFF")
    if not np.isfinite(shown.rgb).all():
        raise ImageFileError(path, "holds infinities or NaN: make it anew")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    picture = _half(shown.rgb)
    a, b = _noise_of_picture(picture)
    # A camera whose colours are those of the space itself; of an unknown one RawNIND's own, which is Rec.2020.
    to_xyz = LIN_SRGB_TO_XYZ if shown.color_space == "srgb" else LIN_REC2020_TO_XYZ
    name = parse_name(path.name)
    return Image(
        sha256=sha256,
        sensor="X-Trans",
        camera="",
        iso=name.iso if name else None,
        cfa=None,
        height=picture.shape[0],
        width=picture.shape[1],
        black_level=None,
        white_level=None,
        overexposure_lb=1.0,
        white_balance=(1.0, 1.0, 1.0),
        noise_a=a,
        noise_b=b,
        xyz_to_camera=tuple(torch.linalg.inv(to_xyz).flatten().tolist()),
        array=picture_file(scene, sha256),
    ), picture


def _half(rgb: np.ndarray) -> np.ndarray:
    return np.clip(rgb, -65504, 65504).astype(np.float16)


def _profile(raw: RawImage) -> tuple[float, float] | None:
    return tuple(np.mean(raw.noise_profile, axis=0).tolist()) if raw.noise_profile else None


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = (max(0, (n - _NOISE_SIDE) // 4 * 2) for n in image.shape[:2])
    return image[top : top + _NOISE_SIDE, left : left + _NOISE_SIDE]


def _noise_of(mosaic: torch.Tensor) -> tuple[float, float]:
    return estimate_noise(pack_cfa(mosaic))


def _noise_of_picture(picture: np.ndarray) -> tuple[float, float]:
    """As if its pixels were photosites; demosaiced noise is smoother, so it comes out too low."""
    part = torch.from_numpy(_middle(picture).astype(np.float32)).permute(2, 0, 1)
    return estimate_noise(torch.stack([part[0], part[1], part[1], part[2]]))


# --- one pair ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Loaded:
    """An image with its samples, memory-mapped."""

    image: Image
    samples: np.ndarray
    demosaic: str

    @property
    def mosaic(self) -> Mosaic:
        """What shifts are found on: of a picture, what a mosaic would have seen of it."""
        image = self.image
        if image.black_level is not None and image.white_level is not None:
            return Mosaic(self.samples, image.black_level, float(image.white_level), image.overexposure_lb)
        height, width = (n // 2 * 2 for n in image.size)
        seen = np.empty((height, width), np.float32)
        for (y, x), color in {(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 2}.items():
            seen[y::2, x::2] = self.samples[y:height:2, x:width:2, color]
        counts = np.clip(np.round(seen * 16000 + 1000), 0, 65535).astype(np.uint16)
        return Mosaic(counts, (1000.0,) * 4, 17000.0, image.overexposure_lb)

    def rgb(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """(3, height, width) float32."""
        image = self.image
        if image.black_level is None or image.white_level is None:
            part = self.samples[top : top + height, left : left + width]
            return torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1), dtype=np.float32))
        levels = (image.black_level, image.white_level, image.white_balance)
        return demosaic_part(self.samples, *levels, demosaic_named(self.demosaic), top, left, height, width)

    def brightest(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """(height, width) float32: what may have clipped at each pixel, a photosite or the brightest channel."""
        image = self.image
        if image.black_level is None or image.white_level is None:
            return self.samples[top : top + height, left : left + width].max(-1).astype(np.float32)
        y, x = top // 2 * 2, left // 2 * 2
        part = normalized_mosaic(self.samples[y : top + height, x : left + width], image.black_level, image.white_level)
        return part[top - y :, left - x :].numpy()


@dataclass(eq=False)
class _Compared:
    """What tiles of a pair came to."""

    mask: np.ndarray
    loss: float = 0.0
    scores: list[tuple[float, int]] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        weight = sum(count for _, count in self.scores)
        return sum(score * count for score, count in self.scores) / weight if weight else None


def _compare(gt: _Loaded, f: _Loaded, shared: Overlap, gain: float, settings: Settings) -> _Compared:
    """Mask, similarity and difference of two images, a tile at a time."""
    compared = _Compared(np.empty((shared.height, shared.width), bool))
    same = gt.image.sha256 == f.image.sha256
    noise = (f.image.noise_a * gain, f.image.noise_b * gain**2) if settings.anomalies.window > 1 else (0.0, 0.0)
    # A tile's masks depend on so many pixels around it.
    margin = max(2 * (settings.anomalies.window // 2) + 2, settings.overexposure_reach)
    for top, bottom in _parts(shared.height, settings.tile):
        for left, right in _parts(shared.width, settings.tile):
            y, x = max(0, top - margin), max(0, left - margin)
            size = (min(shared.height, bottom + margin) - y, min(shared.width, right + margin) - x)
            at_gt, at_f = (shared.gt_top + y, shared.gt_left + x), (shared.f_top + y, shared.f_left + x)
            inner = (slice(top - y, bottom - y), slice(left - x, right - x))
            valid = overexposure_mask(
                gt.brightest(*at_gt, *size), gt.image.overexposure_lb, reach=settings.overexposure_reach
            )
            if same:
                compared.mask[top:bottom, left:right] = valid[inner]
                continue
            gt_rgb, f_rgb = gt.rgb(*at_gt, *size), f.rgb(*at_f, *size) * gain
            valid &= anomaly_mask(gt_rgb.numpy(), f_rgb.numpy(), settings.anomalies, noise=noise)
            valid = compared.mask[top:bottom, left:right] = valid[inner]
            gt_rgb, f_rgb = (rgb[:, inner[0], inner[1]] for rgb in (gt_rgb, f_rgb))
            compared.loss += float((gt_rgb - f_rgb).abs().sum()) / (3 * shared.height * shared.width)
            if gt.image.xyz_to_camera is not None and valid.any():
                mask = torch.from_numpy(np.ascontiguousarray(valid))
                score = quality.similarity(gt_rgb, f_rgb, mask, gt.image.xyz_to_camera)
                if score is not None:
                    compared.scores.append((score, int(valid.sum())))
    if same:
        compared.scores.append((1.0, 1))
    return compared


def _parts(length: int, largest: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of about equal parts, the starts even; none so small that MS-SSIM cannot be had."""
    number = max(1, min(-(-length // largest), length // (MS_SSIM_SMALLEST_SIDE + 2)))
    edges = [round(i * length / number / 2) * 2 for i in range(number)] + [length]
    return itertools.pairwise(edges)


def prepare_pair(
    gt: Image, f: Image, names: dict[str, Any], scene: str, folder: Path, settings: Settings, *, threads: int = 1
) -> Pair:
    """Compare two images that were ingested, and write the pair's mask.

    names   the fields of the row that say where the files lie
    raises  DataError when the two cannot be a pair
    """
    if gt.sensor != f.sensor:
        raise DataError(f"one is a {gt.sensor} image and the other a {f.sensor} one: they cannot be a pair")
    is_bayer = gt.sensor == "Bayer"
    loaded_gt, loaded_f = (_Loaded(image, _load(folder / image.array), settings.demosaic) for image in (gt, f))
    same = gt.sha256 == f.sha256
    found = (
        Alignment((0, 0), (0.0, 0.0), 0.0, 0.0, float("inf"), True)
        if same
        else align(loaded_gt.mosaic, loaded_f.mosaic, settings.matching, threads=threads)
    )
    try:
        shared = overlap(found.shift, gt.size, f.size, lattice=2 if is_bayer else 1)
    except ValueError as error:
        raise DataError(str(error)) from None
    raw_gain, rgb_gain = _gains(loaded_gt, loaded_f, shared, None)
    compared = _compare(loaded_gt, loaded_f, shared, rgb_gain, settings)
    if compared.mask.any():
        raw_gain, rgb_gain = _gains(loaded_gt, loaded_f, shared, compared.mask)
    mask = mask_file(scene, gt.sha256, f.sha256)
    save_array(folder / mask, pack_mask(compared.mask))
    return pair_of(
        gt,
        f,
        **names,
        scene=scene,
        shift_y=found.shift[0],
        shift_x=found.shift[1],
        offset_y=found.offset[0],
        offset_x=found.offset[1],
        alignment_error=found.error,
        alignment_sigma=found.sigma,
        alignment_ok=found.ok,
        alignment_loss=compared.loss,
        raw_gain=raw_gain,
        rgb_gain=rgb_gain,
        mask_mean=valid_fraction(compared.mask),
        rgb_msssim=compared.score,
        mask=mask,
        target=_target(loaded_gt, scene, folder, settings),
        key=pair_key(gt.sha256, f.sha256, settings),
    )


def pair_of(gt: Image, f: Image, *, alignment_ok: bool, rgb_gain: float, mask_mean: float, **others: Any) -> Pair:
    """The row of two images of one sensor: what is known of either, what comparing them came to, and its flags.

    others  the fields of `Pair` that neither image tells, where the files lie among them
    """
    is_bayer = gt.sensor == "Bayer"
    flags = quality.flags(
        alignment_ok=alignment_ok,
        mask_mean=mask_mean,
        rgb_gain=rgb_gain,
        same_camera=gt.camera == f.camera,
        same_size=gt.size == f.size,
    )
    return Pair(
        **others,
        sensor=gt.sensor,
        gt_sha256=gt.sha256,
        f_sha256=f.sha256,
        camera=gt.camera,
        gt_iso=gt.iso,
        f_iso=f.iso,
        cfa=gt.cfa,
        height=gt.height,
        width=gt.width,
        f_height=f.height,
        f_width=f.width,
        alignment_ok=alignment_ok,
        rgb_gain=rgb_gain,
        mask_mean=mask_mean,
        overexposure_lb=gt.overexposure_lb,
        f_overexposure_lb=f.overexposure_lb,
        black_level=gt.black_level,
        f_black_level=f.black_level,
        white_level=gt.white_level,
        f_white_level=f.white_level,
        white_balance=gt.white_balance,
        noise_a=gt.noise_a,
        noise_b=gt.noise_b,
        f_noise_a=f.noise_a,
        f_noise_b=f.noise_b,
        xyz_to_camera=gt.xyz_to_camera,
        gt_mosaic=gt.array if is_bayer else None,
        f_mosaic=f.array if is_bayer else None,
        flags=tuple(flags),
    )


def pair_key(gt_sha256: str, f_sha256: str, settings: Settings) -> str:
    """Names all that a row and its arrays are made of, and how."""
    made_of = [VERSION, gt_sha256, f_sha256, settings.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def _gains(gt: _Loaded, f: _Loaded, shared: Overlap, mask: np.ndarray | None) -> tuple[float | None, float]:
    if gt.image.sensor != "Bayer":
        counted = gt.samples[shared.gt].max(-1) < gt.image.overexposure_lb
        return None, quality.picture_gain(
            gt.samples[shared.gt], f.samples[shared.f], counted if mask is None else counted & mask
        )
    # Where the noisy image clips is known once the gain is.
    expected, _ = quality.mosaic_gains(gt.mosaic, f.mosaic, shared, mask)
    return quality.mosaic_gains(gt.mosaic, f.mosaic, shared, mask, expected=expected)


def _target(gt: _Loaded, scene: str, folder: Path, settings: Settings) -> str | None:
    """The clean image demosaiced, made unless it is there."""
    image = gt.image
    if image.black_level is None or image.white_level is None:
        return image.array
    if settings.targets == "recomputed":
        return None
    file = target_file(scene, image.sha256, settings.demosaic)
    if not (folder / file).exists():
        mosaic = normalized_mosaic(gt.samples, image.black_level, image.white_level)
        rgb = balanced_demosaic(mosaic, image.white_balance, demosaic_named(settings.demosaic))
        save_array(folder / file, _half(rgb.permute(1, 2, 0).numpy()))
    return file


# --- one scene --------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What was done for a scene that was not there before."""

    files_read: int = 0
    pairs_made: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.files_read + other.files_read, self.pairs_made + other.pairs_made)


class ScenePreparation:
    """One scene of a tree and what a prepared folder holds of it."""

    def __init__(
        self, scene: Scene, root: Path, folder: Path, settings: Settings, *, retry_failed: bool = False
    ) -> None:
        self.scene = scene
        self.root = root
        self.folder = folder
        self.settings = settings
        self.retry_failed = retry_failed
        self._files_json = folder / "arrays" / scene.name / "files.json"
        self._files: dict[str, dict[str, Any]] = _read_json(self._files_json) or {}
        self._images: dict[str, Image | str] = {}

    def run(self, reader: Reader, *, threads: int = 1) -> Work:
        """Make what is missing.

        raises  OSError for a folder that cannot be written; what was made until then stays
        """
        work = Work()
        for path in (*self.scene.gt, *self.scene.noisy):
            if self._known(path) is None or (self.retry_failed and isinstance(self._known(path), str)):
                self._ingest(path, reader)
                work.files_read += 1
        for gt, f in self._pairs():
            if self._row(gt, f) is None:
                self._prepare(gt, f, threads)
                work.pairs_made += 1
        return work

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing. Looks at names, sizes and times only."""
        paths = (*self.scene.gt, *self.scene.noisy)
        known = [self._known(path) for path in paths]
        if any(image is None or (self.retry_failed and isinstance(image, str)) for image in known):
            return False
        return all(self._row(gt, f) is not None for gt, f in self._pairs())

    def rows(self, reason: str = "was not reached: run it again") -> list[Row]:
        """A row for every pair of the scene.

        reason  for pairs that are missing
        """
        return [self._row(gt, f) or self._failure(gt, f, reason) for gt, f in self._pairs()]

    def _pairs(self) -> Iterator[tuple[Path, Path]]:
        """Every clean image with itself, with the other clean ones, and with the noisy ones."""
        return ((gt, f) for gt in self.scene.gt for f in (*self.scene.gt, *self.scene.noisy))

    def _known(self, path: Path) -> Image | str | None:
        """What is known of a file: the image, why it cannot be used, or None if it must be read."""
        name = self._name(path)
        if name not in self._images:
            image = self._look_up(path)
            if image is None:
                return None
            self._images[name] = image
        return self._images[name]

    def _look_up(self, path: Path) -> Image | str | None:
        known = self._files.get(self._name(path))
        try:
            status = path.stat()
        except OSError as error:
            return f"cannot be read ({error.strerror}): check its permissions"
        if known is None or [status.st_size, status.st_mtime_ns] != [known["size"], known["mtime_ns"]]:
            return None
        if "error" in known:
            return str(known["error"])
        facts = _read_json(self.folder / _image_file(self.scene.name, known["sha256"]))
        if facts is None or not (self.folder / facts["array"]).exists():
            return None
        return Image.from_json(facts)

    def _ingest(self, path: Path, reader: Reader) -> None:
        try:
            status = path.stat()  # before it is read, or a change meanwhile would go unnoticed
        except OSError:
            return  # it went away, which the next look at it tells
        entry: dict[str, Any] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
        try:
            image: Image | str = ingest(path, self.scene.name, self.folder, reader)
            entry["sha256"] = image.sha256
        except (RawFileError, ImageFileError) as error:
            image = entry["error"] = error.reason
        self._images[self._name(path)] = image
        self._files[self._name(path)] = entry
        _write_json(self._files_json, self._files)

    def _prepare(self, gt: Path, f: Path, threads: int) -> None:
        image, other = self._known(gt), self._known(f)
        assert isinstance(image, Image)
        assert isinstance(other, Image)
        made: dict[str, Any] = {"key": pair_key(image.sha256, other.sha256, self.settings)}
        names = self._names(gt, f)
        try:
            pair = prepare_pair(image, other, names, self.scene.name, self.folder, self.settings, threads=threads)
            made["row"] = asdict(pair)
        except StillgrainError as error:
            made["error"] = str(error)
        _write_json(self._pair_file(image, other), made)

    def _row(self, gt: Path, f: Path) -> Row | None:
        """The row of a pair that was made, or why it cannot be; None if it must be made."""
        image, other = self._known(gt), self._known(f)
        if image is None or other is None:
            return None
        problem = self._problem(gt, f)
        if problem is not None:
            return self._failure(gt, f, problem)
        assert isinstance(image, Image)
        assert isinstance(other, Image)
        made = _read_json(self._pair_file(image, other))
        if made is None or made["key"] != pair_key(image.sha256, other.sha256, self.settings):
            return None
        if "error" in made:
            return self._failure(gt, f, made["error"])
        # The files may have moved since.
        row = row_of({**made["row"], **self._names(gt, f), "scene": self.scene.name})
        assert isinstance(row, Pair)
        there = all((self.folder / file).exists() for file in (row.mask, row.target) if file is not None)
        return row if there else None

    def _problem(self, gt: Path, f: Path) -> str | None:
        """Why two files that were looked at are no pair, as the files alone tell."""
        for path in (gt, f):
            image = self._known(path)
            reason = image if isinstance(image, str) else image.unusable if image else None
            reason = reason or self._duplicate(path)
            if reason:
                return f"{self._name(path)}: {reason}"
        return None

    def _duplicate(self, path: Path) -> str | None:
        """What the same bytes under two names would count twice."""
        image = self._known(path)
        for other in (*self.scene.gt, *self.scene.noisy):
            if other == path:
                return None
            before = self._known(other)
            if isinstance(before, Image) and isinstance(image, Image) and before.sha256 == image.sha256:
                return f"has the bytes of {self._name(other)}, which counts already"
        return None

    def _failure(self, gt: Path, f: Path, reason: str) -> Failure:
        images = [self._known(path) for path in (gt, f)]
        shas = [image.sha256 if isinstance(image, Image) else None for image in images]
        sensor: Sensor = "X-Trans" if self.scene.sensor == "X-Trans" else "Bayer"
        return Failure(
            scene=self.scene.name,
            sensor=sensor,
            gt_sha256=shas[0],
            f_sha256=shas[1],
            error=reason,
            **self._names(gt, f),
        )

    def _names(self, gt: Path, f: Path) -> dict[str, Any]:
        return {"gt_path": self._name(gt), "f_path": self._name(f), "f_is_clean": f in self.scene.gt}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _pair_file(self, gt: Image, f: Image) -> Path:
        return self.folder / mask_file(self.scene.name, gt.sha256, f.sha256).replace(".mask.npy", ".json")


def _image_file(scene: str, sha256: str) -> str:
    return f"arrays/{scene}/{sha256[:16]}.json"


def save_array(file: Path, array: np.ndarray) -> None:
    """Write an array, whole or not at all."""
    with whole_file(file) as temporary, open(temporary, "wb") as opened:
        np.save(opened, array)


def _load(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}): delete it, and prepare the tree again") from None


def _write_json(file: Path, data: Any) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def _read_json(file: Path) -> Any:
    """None for a file that is not there."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
