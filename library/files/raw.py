"""Raw files as they were recorded: the mosaic of the active area, its levels, and what the camera said about it.

Packing, normalising and forcing a CFA phase are ops on the result. LibRaw decodes; what it does not tell (make, model,
exact exposure, a DNG's own tags) comes from the file's EXIF.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rawpy

from library.errors import RawFileError
from library.files import ciff, exif, headless
from library.files.dng_tags import DngValue, read_dng_tags
from library.files.exif import ExifValue
from library.files.metadata import ImageMetadata
from library.ops.cfa_letters import BAYER_PHASES, CFA_PHASES

if TYPE_CHECKING:
    from library.ops.levels import WhiteLevel

RAW_SUFFIXES = frozenset(
    [
        ".3fr",
        ".arw",
        ".cr2",
        ".cr3",
        ".crw",
        ".dcr",
        ".dng",
        ".erf",
        ".fff",
        ".gpr",
        ".iiq",
        ".k25",
        ".kdc",
        ".mef",
        ".mos",
        ".mrw",
        ".nef",
        ".nrw",
        ".orf",
        ".pef",
        ".raf",
        ".raw",
        ".rw2",
        ".rwl",
        ".sr2",
        ".srf",
        ".srw",
        ".x3f",
    ]
)
"""Names that raw files of cameras end with, in lower case. What is in a file, only reading it tells."""

# LibRaw's flip has bits for mirror (1), upside down (2) and transpose (4).
_ORIENTATION_OF_FLIP = {0: 1, 1: 2, 3: 3, 2: 4, 4: 5, 6: 6, 7: 7, 5: 8}

_COLOR_MATRICES = {50778: 50721, 50779: 50722}  # DNG CalibrationIlluminant1, 2 -> ColorMatrix1, 2
_D65 = 21
_BLACK_LEVEL_REPEAT_DIM, _BLACK_LEVEL, _ACTIVE_AREA = 50713, 50714, 50829
_NOISE_PROFILE = 51041
_OF_MOSAIC = (_BLACK_LEVEL_REPEAT_DIM, _BLACK_LEVEL, _ACTIVE_AREA, _NOISE_PROFILE)
"""Tags that count where the mosaic is, which need not be a DNG's first directory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RawImage:
    """One raw file. None and "" mean that the file does not say.

    mosaic                  uint16 (H, W) DN of the active area: no optical-black borders, whole even where odd-sized
    cfa                     the letters of the top-left tile, row by row: RGGB, GRBG, GBRG or BGGR, or the 36 of an
                            X-Trans tile (one of `library.ops.cfa.XTRANS_PHASES`)
    black_level             (2, 2) or (6, 6) DN by CFA tile position
    white_level             DN at which a photosite saturates; LibRaw's, which other decoders may put elsewhere
    camera_white_level      (2, 2) or (6, 6) DN by CFA tile position, where the maker notes have it
    as_shot_white_balance   (3,) R, G, B multipliers, G = 1
    xyz_to_camera           (3, 3) for D65, rows R, G, B, as LibRaw knows the camera or else as the DNG says
    exposure_time           s
    focal_length            mm
    timestamp               ISO 8601 on the camera's clock, without zone
    orientation             EXIF code 1 to 8; the mosaic is not turned
    pixel_aspect            width of a photosite over its height
    sha256                  of the whole file, whose very bytes were decoded
    noise_profile           (a, b) for all CFA planes or for each: variance a*x + b at x in [0, 1] (DNG NoiseProfile)
    exif                    whitelisted values by EXIF name (`library.files.exif.FIELDS`)
    dng                     of a DNG: colour, lens and framing by name (`library.files.dng_tags.FIELDS`)
    """

    path: str
    mosaic: np.ndarray
    cfa: str
    black_level: np.ndarray
    white_level: int
    decoder: str
    sha256: str
    camera_white_level: np.ndarray | None = None
    as_shot_white_balance: np.ndarray | None = None
    xyz_to_camera: np.ndarray | None = None
    make: str = ""
    model: str = ""
    iso: float | None = None
    exposure_time: float | None = None
    f_number: float | None = None
    focal_length: float | None = None
    timestamp: str | None = None
    orientation: int = 1
    pixel_aspect: float = 1.0
    noise_profile: tuple[tuple[float, float], ...] | None = None
    exif: Mapping[str, ExifValue]
    dng: Mapping[str, DngValue] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return self.mosaic.shape[0]

    @property
    def width(self) -> int:
        return self.mosaic.shape[1]

    @property
    def clipping_level(self) -> np.ndarray:
        """(2, 2) or (6, 6) DN by CFA tile position from which a photosite holds no picture: the lower of the decoder's
        level and the camera's own."""
        level = np.full(self.black_level.shape, float(self.white_level))
        return level if self.camera_white_level is None else np.minimum(level, self.camera_white_level)

    def require_bayer(self, why: str) -> None:
        """Raises `RawFileError` for an X-Trans mosaic; `why` says what takes Bayer mosaics only, and the remedy."""
        if self.cfa not in BAYER_PHASES:
            raise RawFileError(self.path, f"is an X-Trans mosaic, and {why}")

    def white_level_by(self, policy: WhiteLevel) -> float:
        """DN that counts as white, one for all sites, since a white for each colour would change the white balance.

        decoder  LibRaw's. camera  the lowest of the camera's own, LibRaw's where the file has none. minimum  the lower
        of the two
        """
        if policy == "decoder" or self.camera_white_level is None:
            return float(self.white_level)
        camera = float(self.camera_white_level.min())
        return camera if policy == "camera" else min(camera, float(self.white_level))

    def at_white_level(self, policy: WhiteLevel) -> RawImage:
        """The same raw with the white level of a policy."""
        return replace(self, white_level=round(self.white_level_by(policy)))

    def describe_levels(self, policy: WhiteLevel) -> str:
        """What a file made of this raw says of them: `black 512, white 16383 (decoder, LibRaw 0.22.2 ...)`."""
        lowest, highest = float(self.black_level.min()), float(self.black_level.max())
        black = f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g} by CFA site"
        return f"black {black}, white {self.white_level_by(policy):g} ({policy}; {self.decoder})"

    def metadata(self) -> ImageMetadata:
        """What a file made of this one should say."""
        shared = {field.name for field in fields(ImageMetadata)} & {field.name for field in fields(self)}
        return ImageMetadata(original_name=Path(self.path).name, **{name: getattr(self, name) for name in shared})

    def to_json(self) -> dict[str, Any]:
        """Every field but the mosaic, with `height` and `width`, in plain JSON types; of opcodes, how many bytes."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "mosaic"}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
        profile = [list(pair) for pair in self.noise_profile] if self.noise_profile else None
        dng = {name: f"{len(value)} bytes" if isinstance(value, bytes) else value for name, value in self.dng.items()}
        return plain | {
            "noise_profile": profile,
            "exif": dict(self.exif),
            "dng": dng,
            "height": self.height,
            "width": self.width,
        }


def read_raw(path: str | Path) -> RawImage:
    """Reads a Bayer or X-Trans raw file of any camera LibRaw knows, or a headless one that has a sidecar.

    raises  RawFileError, saying why and what to do: missing, empty, damaged or unsupported files, and those that hold
            no mosaic of red, green and blue (linear DNG, Foveon, monochrome, four colours) or impossible levels
    """
    path = Path(path)
    data = _bytes_of(path)
    image = _read_with_libraw(path, data) if headless.is_container(data[:32]) else _read_headless(path, data)
    if image.white_level <= image.black_level.max():
        raise RawFileError(
            path,
            f"its white level {image.white_level} is not above its black level {image.black_level.max():g}: the file "
            "is damaged or its camera misunderstood; correct the levels with a DNG converter",
        )
    return image


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise RawFileError(path, "is a folder: name a raw file inside it")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RawFileError(path, "does not exist: check the path", lasting=False) from error
    except OSError as error:
        reason = f"cannot be read ({error.strerror}): check its permissions and the disk"
        raise RawFileError(path, reason, lasting=False) from error
    if not data:
        raise RawFileError(path, "is empty (0 bytes): copy it again from the card or the backup")
    return data


def _read_headless(path: Path, data: bytes) -> RawImage:
    try:
        sidecar, mosaic = headless.read_sidecar(path, data)
    except OSError as error:
        place = headless.sidecar_path(path).name
        reason = f"its description {place} cannot be read ({error.strerror}): check its permissions and the disk"
        raise RawFileError(path, reason, lasting=False) from error
    white_balance = sidecar.as_shot_white_balance
    return RawImage(
        path=str(path),
        mosaic=mosaic,
        cfa=sidecar.cfa,
        black_level=np.broadcast_to(
            np.array(sidecar.black_level, np.float32), (2, 2) if len(sidecar.cfa) == 4 else (6, 6)
        ).copy(),
        white_level=sidecar.white_level,
        decoder="16-bit little-endian samples described by a sidecar",
        sha256=hashlib.sha256(data).hexdigest(),
        as_shot_white_balance=None if white_balance is None else _white_balance(white_balance),
        xyz_to_camera=None if sidecar.xyz_to_camera is None else np.array(sidecar.xyz_to_camera),
        make=sidecar.make,
        model=sidecar.model,
        iso=sidecar.iso,
        orientation=sidecar.orientation,
        exif={},
    )


def _read_with_libraw(path: Path, data: bytes) -> RawImage:
    tags = exif.read_tags(data)
    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            raw.unpack()
            _refuse_what_is_no_mosaic(path, raw)
            return _raw_image(path, data, raw, tags)
    except (rawpy.LibRawError, rawpy.NotSupportedError, NotImplementedError) as error:
        raise RawFileError(path, _why_unreadable(path, data, tags, error)) from error


def _raw_image(path: Path, data: bytes, raw: rawpy.RawPy, tags: Mapping[int, Any]) -> RawImage:
    tags = {**tags, **exif.read_mosaic_tags(data, _OF_MOSAIC)}
    rows, columns = _active_area(raw, tags)
    tile = _tile_at(raw, rows.start - raw.sizes.top_margin, columns.start - raw.sizes.left_margin)
    camera_white = raw.camera_white_level_per_channel
    shot = raw.other
    return RawImage(
        path=str(path),
        mosaic=raw.raw_image[rows, columns].copy(),
        cfa=_letters(tile),
        black_level=_black_level(raw, tile, tags),
        white_level=int(raw.white_level),
        camera_white_level=np.array(camera_white, np.float32)[tile] if camera_white and all(camera_white) else None,
        as_shot_white_balance=_white_balance(raw.camera_whitebalance),
        xyz_to_camera=_xyz_to_camera(raw, tags),
        make=_text(tags, exif.MAKE),
        model=_text(tags, exif.MODEL),
        iso=_iso(shot.iso_speed, tags),
        exposure_time=_positive(tags, exif.EXPOSURE_TIME, otherwise=shot.shutter_speed),
        f_number=_positive(tags, exif.F_NUMBER, otherwise=shot.aperture),
        focal_length=_positive(tags, exif.FOCAL_LENGTH, otherwise=shot.focal_length),
        timestamp=_timestamp(_text(tags, exif.DATE_TIME_ORIGINAL), otherwise=shot.timestamp),
        orientation=_ORIENTATION_OF_FLIP.get(raw.sizes.flip, 1),
        pixel_aspect=float(raw.sizes.pixel_aspect),
        decoder=f"LibRaw {_LIBRAW} (rawpy {version('rawpy')})",
        sha256=hashlib.sha256(data).hexdigest(),
        noise_profile=_noise_profile(tags),
        exif=exif.whitelisted(tags),
        dng=read_dng_tags(data),
    )


_LIBRAW = ".".join(map(str, rawpy.libraw_version))


def _refuse_what_is_no_mosaic(path: Path, raw: rawpy.RawPy) -> None:
    pattern = raw.raw_pattern
    if raw.raw_type is not rawpy.RawType.Flat or pattern is None:
        raise RawFileError(
            path,
            "holds several colours per pixel (linear DNG, sRAW, Foveon), so it is already demosaiced: "
            "use the raw file it was made from",
        )
    if raw.num_colors != 3 or raw.color_desc != b"RGBG":
        raise RawFileError(
            path,
            f"has a colour filter array of {raw.num_colors} colours ({raw.color_desc.decode()}): "
            "only mosaics of red, green and blue can be used",
        )
    if pattern.shape not in ((2, 2), (6, 6)) or _letters(_tile_at(raw, 0, 0)) not in CFA_PHASES:
        raise RawFileError(
            path,
            f"has neither a Bayer nor an X-Trans colour filter array (its pattern repeats every {pattern.shape[0]} x "
            f"{pattern.shape[1]} photosites): only mosaics of these two can be used",
        )


def _why_unreadable(path: Path, data: bytes, tags: Mapping[int, Any], error: Exception) -> str:
    said = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
    if path.suffix.lower() == ".gpr":
        return (
            f"is a GoPro GPR, compressed with VC-5, which LibRaw {_LIBRAW} cannot decode: "
            "convert it to DNG with GoPro's gpr_tools or Adobe DNG Converter"
        )
    if isinstance(error, rawpy.LibRawUnsufficientMemoryError | rawpy.LibRawMemPoolOverflowError):
        return f"needs more memory to decode than there is (LibRaw: {said}): it is damaged, or too large"
    truncated = data[6:14] == ciff.SIGNATURE and not tags
    if truncated or isinstance(error, rawpy.LibRawIOError | rawpy.LibRawDataError):
        return f"is truncated or damaged (LibRaw: {said}): copy it again from the card or the backup"
    return (
        f"is no raw file that LibRaw {_LIBRAW} can read ({said}): it may be truncated, of an unknown camera or "
        "compression, or no raw file; if other programs open it, convert it to DNG with Adobe DNG Converter"
    )


def _tile_at(raw: rawpy.RawPy, top: int, left: int) -> np.ndarray:
    """(2, 2) or (6, 6) LibRaw colour indices of the tile that begins at (top, left) of the visible area, which may be
    outside of it."""
    assert raw.raw_pattern is not None
    period = len(raw.raw_pattern)
    first_row, first_column = raw.sizes.top_margin, raw.sizes.left_margin
    # `raw_pattern` itself counts from the borders' corner.
    tile = [[raw.raw_color(first_row + y, first_column + x) for x in range(period)] for y in range(period)]
    return np.roll(np.array(tile), (-top, -left), (0, 1))


def _active_area(raw: rawpy.RawPy, tags: Mapping[int, Any]) -> tuple[slice, slice]:
    """Rows and columns of `raw_image`. LibRaw's, but whole: of a DNG's odd ActiveArea it drops a line."""
    sizes = raw.sizes
    top, left, bottom, right = (
        sizes.top_margin,
        sizes.left_margin,
        sizes.top_margin + sizes.height,
        sizes.left_margin + sizes.width,
    )
    area = [int(number) for number in _numbers(tags, _ACTIVE_AREA)]
    if len(area) == 4 and 0 <= top - area[0] <= 1 and 0 <= left - area[1] <= 1 and area[2:] == [bottom, right]:
        top, left = area[:2]
    return slice(top, bottom), slice(left, right)


def _black_level(raw: rawpy.RawPy, tile: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """(2, 2) or (6, 6) DN by CFA tile position."""
    # LibRaw has a level for each of its four colour indices, so loses those of X-Trans, and mistakes those of an odd
    # ActiveArea. A DNG has them by site from ActiveArea's corner.
    size, levels = ([int(side) for side in _numbers(tags, _BLACK_LEVEL_REPEAT_DIM)], _numbers(tags, _BLACK_LEVEL))
    fits = len(size) == 2 and all(side > 0 and n % side == 0 for n, side in zip(tile.shape, size, strict=True))
    if fits and len(levels) == size[0] * size[1] > 1:
        repeats = [n // side for n, side in zip(tile.shape, size, strict=True)]
        return np.tile(np.array(levels, np.float32).reshape(size), repeats)
    return np.array(raw.black_level_per_channel, np.float32)[tile]


def _letters(tile: np.ndarray) -> str:
    return "".join("RGBG"[index] for index in tile.flat)


def _white_balance(multipliers: Sequence[float]) -> np.ndarray | None:
    red, green, blue = multipliers[:3]
    known = all(0 < multiplier < np.inf for multiplier in (red, green, blue))
    return np.array([red / green, 1.0, blue / green]) if known else None


def _xyz_to_camera(raw: rawpy.RawPy, tags: Mapping[int, Any]) -> np.ndarray | None:
    matrix = raw.rgb_xyz_matrix[:3].astype(np.float64)
    if matrix.any():
        return matrix
    # LibRaw knows the cameras of its own table only, and never tells a DNG's matrices.
    matrices = [(_numbers(tags, light), _numbers(tags, number)) for light, number in _COLOR_MATRICES.items()]
    usable = [(light, values) for light, values in matrices if len(values) == 9 and any(values)]
    if not usable:
        return None
    return np.reshape(next((values for light, values in usable if light == [_D65]), usable[-1][1]), (3, 3))


def _noise_profile(tags: Mapping[int, Any]) -> tuple[tuple[float, float], ...] | None:
    values = _numbers(tags, _NOISE_PROFILE)
    return tuple(zip(values[::2], values[1::2], strict=False)) if values and np.isfinite(values).all() else None


def _numbers(tags: Mapping[int, Any], number: int) -> list[float]:
    value = tags.get(number)
    return value if isinstance(value, list) else []


def _text(tags: Mapping[int, Any], number: int) -> str:
    value = tags.get(number, "")
    return value if isinstance(value, str) else ""


def _positive(tags: Mapping[int, Any], number: int, *, otherwise: float) -> float | None:
    # A zero in the file means unknown, of which LibRaw makes 1 by APEX; beyond a million it is damage.
    value = float((_numbers(tags, number) or [otherwise])[0])
    return value if 0 < value < 1e6 else None


def _iso(speed: float, tags: Mapping[int, Any]) -> float | None:
    if speed == exif.ISO_CEILING:
        speed = (_numbers(tags, exif.RECOMMENDED_EXPOSURE_INDEX) or [0])[0]
    return float(speed) if 0 < speed < 1e9 else None


def _timestamp(text: str, *, otherwise: datetime) -> str | None:
    try:
        return datetime.strptime(text, "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return otherwise.isoformat() if otherwise.timestamp() > 0 else None
