"""The index of a prepared tree of pairs: one row for each clean and noisy image, as a Parquet file.

Any program that reads Parquet can read it. Pairs that could not be prepared are rows too, with the reason in `error`
and nulls where nothing is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from library.errors import DataError
from library.files.atomic import whole_file
from library.pairs.shift import Overlap, overlap

INDEX = "index.parquet"
FORMAT = 1
Sensor = Literal["Bayer", "X-Trans"]

_NUMBERS = pa.list_(pa.float64())
_FORMAT_KEY = b"stillgrain.pairs"
SCHEMA = pa.schema(
    [
        ("scene", pa.string()),
        ("sensor", pa.string()),
        ("gt_path", pa.string()),
        ("f_path", pa.string()),
        ("gt_sha256", pa.string()),
        ("f_sha256", pa.string()),
        ("f_is_clean", pa.bool_()),
        ("camera", pa.string()),
        ("gt_iso", pa.float64()),
        ("f_iso", pa.float64()),
        ("cfa", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("f_height", pa.int32()),
        ("f_width", pa.int32()),
        ("shift_y", pa.int32()),
        ("shift_x", pa.int32()),
        ("offset_y", pa.float32()),
        ("offset_x", pa.float32()),
        ("alignment_error", pa.float32()),
        ("alignment_sigma", pa.float32()),
        ("alignment_ok", pa.bool_()),
        ("alignment_loss", pa.float32()),
        ("raw_gain", pa.float64()),
        ("rgb_gain", pa.float64()),
        ("mask_mean", pa.float64()),
        ("rgb_msssim", pa.float64()),
        ("overexposure_lb", pa.float64()),
        ("f_overexposure_lb", pa.float64()),
        ("black_level", _NUMBERS),
        ("f_black_level", _NUMBERS),
        ("white_level", pa.int32()),
        ("f_white_level", pa.int32()),
        ("white_balance", _NUMBERS),
        ("noise_a", pa.float64()),
        ("noise_b", pa.float64()),
        ("f_noise_a", pa.float64()),
        ("f_noise_b", pa.float64()),
        ("xyz_to_camera", _NUMBERS),
        ("gt_mosaic", pa.string()),
        ("f_mosaic", pa.string()),
        ("mask", pa.string()),
        ("target", pa.string()),
        ("flags", pa.list_(pa.string())),
        ("key", pa.string()),
        ("error", pa.string()),
    ],
    metadata={_FORMAT_KEY: str(FORMAT).encode()},
)
"""Columns by name: those of `Pair` and of `Failure`."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A clean and a noisy image of one scene, ready to train on. `gt` is the clean one; `f` the other, noisy or clean.

    scene              name of its folder
    sensor             Bayer; X-Trans: both images are pictures in linear light, and what concerns mosaics is None
    gt_path, f_path    of the sources, relative to the tree's root
    gt_sha256, f_sha256  of the sources' bytes
    f_is_clean         f is another clean image of the scene, or the very same
    camera             make and model
    gt_iso, f_iso      None where the file does not say
    cfa                of the stored mosaics: RGGB, whatever the camera's
    height, width      of the clean image; f_height, f_width of the other: full-resolution pixels, even
    shift_y, shift_x   full-resolution pixels, as in `library.pairs.shift`
    offset_y, offset_x  the shift before it was rounded
    alignment_error    1 - coherence at the shift: 0 for images that are one another's shifted copies, 1 for unlike
                       ones; depends on the noise, not on the brightness
    alignment_sigma    standard error of the offset, full-resolution pixels; both None where another program aligned
    alignment_ok       the shift is certain to the pixel
    alignment_loss     mean |gt - gain * f| of the overlap's camera RGB: the legacy's measure
    raw_gain, rgb_gain  mean of gt over mean of f, of photosites and of camera RGB, over valid pixels
    mask_mean          share of valid pixels
    rgb_msssim         MS-SSIM of lin_rec2020 after the gain, over valid pixels; None where a side is below 161 px, or
                       the camera's colours are unknown
    overexposure_lb    clipping level of the clean image: (level - black) / (white - black)
    black_level        (4,) DN by RGGB site; white_level: DN
    white_balance      (3,) as-shot gains of the clean image, green 1; all 1 where unknown
    noise_a, noise_b   noise of the clean image's photosites, variance a x + b; f_noise_a, f_noise_b of the other's
    xyz_to_camera      (9,) row by row, None where unknown
    gt_mosaic, f_mosaic, mask, target  files, relative to the prepared folder; a mask's pixels are those of the shifted
                       gt. No target: it is demosaiced as it is read
    flags              what a person may want to look at
    key                names all that the row and its files were made of, and how
    """

    scene: str
    sensor: Sensor
    gt_path: str
    f_path: str
    gt_sha256: str
    f_sha256: str
    f_is_clean: bool
    camera: str
    gt_iso: float | None = None
    f_iso: float | None = None
    cfa: str | None
    height: int
    width: int
    f_height: int
    f_width: int
    shift_y: int
    shift_x: int
    offset_y: float
    offset_x: float
    alignment_error: float | None
    alignment_sigma: float | None
    alignment_ok: bool
    alignment_loss: float
    raw_gain: float | None
    rgb_gain: float
    mask_mean: float
    rgb_msssim: float | None = None
    overexposure_lb: float
    f_overexposure_lb: float
    black_level: tuple[float, ...] | None
    f_black_level: tuple[float, ...] | None
    white_level: int | None
    f_white_level: int | None
    white_balance: tuple[float, ...]
    noise_a: float
    noise_b: float
    f_noise_a: float
    f_noise_b: float
    xyz_to_camera: tuple[float, ...] | None = None
    gt_mosaic: str | None
    f_mosaic: str | None
    mask: str
    target: str | None = None
    flags: tuple[str, ...] = ()
    key: str

    @property
    def overlap(self) -> Overlap:
        """The pixels that both images have; a crop's coordinates count from its corner."""
        lattice = 2 if self.sensor == "Bayer" else 1
        return overlap(
            (self.shift_y, self.shift_x), (self.height, self.width), (self.f_height, self.f_width), lattice=lattice
        )

    @property
    def is_one_image(self) -> bool:
        """A clean image with itself."""
        return self.gt_sha256 == self.f_sha256


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A pair that could not be prepared, and why. What was not read is None."""

    scene: str
    sensor: Sensor
    gt_path: str
    f_path: str
    gt_sha256: str | None = None
    f_sha256: str | None = None
    f_is_clean: bool
    error: str


Row = Pair | Failure


def write_index(folder: str | Path, rows: Iterable[Row]) -> None:
    """Write `<folder>/index.parquet`, whole or not at all: sorted, so that the same rows give the same bytes."""
    ordered = sorted(rows, key=lambda row: (row.scene, row.sensor, row.gt_path, row.f_path))
    table = pa.Table.from_pylist([asdict(row) for row in ordered], schema=SCHEMA)
    with whole_file(Path(folder) / INDEX) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_index(folder: str | Path) -> list[Row]:
    """All rows of a prepared folder, in the order of scene and paths.

    raises  DataError for a folder without an index, or with one of another format
    """
    path = Path(folder) / INDEX
    try:
        # Not `read_table`, which would take folders named `a=b` above the file for columns.
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path}: is no index of pairs ({error}): prepare the tree with a config of `workload: prepare`"
        ) from None
    found = (table.schema.metadata or {}).get(_FORMAT_KEY, b"none").decode()
    if found != str(FORMAT) or not set(SCHEMA.names) <= set(table.column_names):
        raise DataError(f"{path}: has format {found}, and this version reads format {FORMAT}: prepare the tree again")
    return [row_of(record) for record in table.to_pylist()]


def row_of(record: dict[str, Any]) -> Row:
    """A row from its columns; lists become tuples."""
    cls = Pair if record.get("error") is None else Failure
    values: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value := record[field.name], list) else value
        for field in fields(cls)
        if field.name in record or field.default is MISSING
    }
    return cls(**values)


def index_digest(pairs: Iterable[Pair]) -> str:
    """Names what can be trained on: the pairs by what they were made of and how, and their scenes, which decide the
    split. Where the sources lie does not matter."""
    named = sorted([pair.scene, pair.key] for pair in pairs)
    return hashlib.sha256(json.dumps(named, ensure_ascii=False).encode()).hexdigest()
