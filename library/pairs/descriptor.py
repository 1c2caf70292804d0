"""RawNIND's own training descriptor, a YAML list: read, written, and taken over in either direction.

It has three kinds of entry: a pair with its shift, mask and tiles; a clean image alone with its tiles; and a pair of
developed pictures. Every field of each is kept, unknown ones too, so that what is read is written again as it was.

In it coordinates of tiles are [x, y] in 2x2 tiles of a mosaic, also those of full-resolution pictures, while masks are
at full resolution: `Tile.top` and `Tile.left` are the pixels. Paths are as the program that wrote them saw them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import yaml
from PIL import Image as PillowImage

from library.errors import DataError, ImageFileError, RawFileError
from library.files.atomic import whole_file
from library.pairs.index import Failure, Pair, Row, Sensor, read_index, write_index
from library.pairs.masks import pack_mask, unpack_mask, valid_fraction
from library.pairs.prepare import DirectReader, Image, Reader, ingest, pair_of, save_array
from library.pairs.shift import overlap
from library.pairs.store import mask_file

# Descriptors hold tens of thousands of lines, which the loader in Python takes minutes for.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: type = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_CERTAIN_LOSS = 0.035
"""Mean difference up to which RawNIND's loaders take a shift to be right."""

E = TypeVar("E", bound="_Fields")


@dataclass(frozen=True, kw_only=True)
class _Fields:
    """Fields of a YAML mapping. One that is None is left out unless it is named in `NULL`; what is unknown lies in
    `extra`."""

    NULL: ClassVar[tuple[str, ...]] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls: type[E], data: dict[str, Any]) -> E:
        """Raises TypeError for a field that is missing."""
        known = {f.name for f in fields(cls)} - {"extra"}
        return cls(
            **{k: v for k, v in data.items() if k in known}, extra={k: v for k, v in data.items() if k not in known}
        )

    def to_mapping(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {name: value for name, value in named.items() if value is not None or name in self.NULL} | self.extra


@dataclass(frozen=True, kw_only=True)
class Tile(_Fields):
    """A tile of both images of a pair, or of one image, cut before they were shifted.

    coordinates  [x, y] of its corner in 2x2 tiles
    """

    coordinates: list[int]
    gt_linrec2020_fpath: str
    f_linrec2020_fpath: str | None = None
    gt_bayer_fpath: str | None = None
    f_bayer_fpath: str | None = None

    @property
    def left(self) -> int:
        """Full-resolution pixels."""
        return 2 * self.coordinates[0]

    @property
    def top(self) -> int:
        """Full-resolution pixels."""
        return 2 * self.coordinates[1]


@dataclass(frozen=True, kw_only=True)
class PairEntry(_Fields):
    """A clean and a noisy image.

    best_alignment       [dy, dx] full-resolution pixels
    best_alignment_loss  mean absolute error at that shift
    rgb_xyz_matrix       4 x 3 XYZ(D65) to camera, the last row 0; None for X-Trans
    overexposure_lb      clipping level of the clean image, fraction of white
    raw_gain, rgb_gain   means of the clean image over those of the noisy one; no raw gain for X-Trans
    crops                None for developed pictures, which have the fields after it
    """

    NULL: ClassVar[tuple[str, ...]] = ("rgb_xyz_matrix", "raw_gain")
    gt_fpath: str
    f_fpath: str
    image_set: str
    best_alignment: list[int]
    best_alignment_loss: float
    mask_fpath: str
    mask_mean: float
    is_bayer: bool
    rgb_xyz_matrix: list[list[float]] | None
    overexposure_lb: float
    raw_gain: float | None
    rgb_gain: float
    rgb_msssim_score: float | None = None
    crops: list[Tile] | None = None
    gt_linrec2020_fpath: str | None = None
    f_linrec2020_fpath: str | None = None
    dt_xmp: str | None = None
    gt_manproc_fpath: str | None = None
    f_manproc_fpath: str | None = None
    gt_rgb_mean: float | None = None


@dataclass(frozen=True, kw_only=True)
class CleanEntry(_Fields):
    """A clean image that has no noisy one."""

    NULL: ClassVar[tuple[str, ...]] = ("rgb_xyz_matrix",)
    bayer_fpath: str | None = None
    linrec2020_fpath: str | None = None
    overexposure_lb: float
    rgb_xyz_matrix: list[list[float]] | None
    crops: list[Tile]


Entry = PairEntry | CleanEntry


def read_descriptor(path: str | Path) -> list[Entry]:
    """The entries of a descriptor, in order.

    raises  DataError naming the entry and the field
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({error}): give a descriptor of RawNIND, a YAML list") from None
    if not isinstance(data, list):
        raise DataError(f"{path}: holds no list of pairs: give a descriptor of RawNIND")
    return [_entry(path, number, item) for number, item in enumerate(data)]


def _entry(path: str | Path, number: int, item: Any) -> Entry:
    where = f"{path}: entry {number}"
    if not isinstance(item, dict):
        raise DataError(f"{where} is no mapping of fields: correct or remove it")
    try:
        crops = item.get("crops")
        tiles = None if crops is None else [Tile.from_mapping(crop) for crop in crops]
        return (PairEntry if "f_fpath" in item else CleanEntry).from_mapping({**item, "crops": tiles})
    except (TypeError, AttributeError) as error:
        reason = str(error).partition("__init__() ")[2] or str(error)
        raise DataError(f"{where}: {reason}: correct or remove it") from None


def write_descriptor(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write a descriptor, whole or not at all."""
    data = []
    for entry in entries:
        mapping = entry.to_mapping()
        if entry.crops is not None:
            mapping["crops"] = [tile.to_mapping() for tile in entry.crops]
        data.append(mapping)
    with whole_file(path) as temporary:
        temporary.write_text(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True), encoding="utf-8")


# --- from a prepared folder and to one --------------------------------------------------------------------------------


def export_descriptor(
    folder: str | Path, tree: str | Path, path: str | Path, *, crops: str | Path | None = None
) -> list[Entry]:
    """Write the descriptor of a prepared folder, and its masks as PNGs in `masks` beside it.

    folder   as `workload: prepare` leaves it
    tree     that it was made of; paths in the descriptor begin with it
    crops    RawNIND's folder of tiles, whose `src/Bayer` and `proc/lin_rec2020` are listed; None: no tiles
    returns  the entries, in order of the index; pairs that failed are left out
    """
    folder, tree, path = Path(folder), Path(tree), Path(path)
    entries: list[Entry] = []
    tiles = _TilesOf(Path(crops)) if crops is not None else None
    for pair in (row for row in read_index(folder) if isinstance(row, Pair)):
        name = hashlib.sha256(f"{pair.scene} {pair.gt_path} {pair.f_path}".encode()).hexdigest()[:16]
        # RawNIND cuts names made of the two paths at 251 characters, where they can meet.
        mask = path.parent / "masks" / f"{pair.scene.replace('/', '_')}-{name}.png"
        shared = pair.overlap
        valid = unpack_mask(np.load(folder / pair.mask, mmap_mode="r"), 0, 0, shared.height, shared.width)
        with whole_file(mask) as temporary:
            PillowImage.fromarray(valid.astype(np.uint8) * 255).save(temporary, format="PNG")
        matrix = None
        if pair.sensor == "Bayer" and pair.xyz_to_camera is not None:
            matrix = [*np.reshape(pair.xyz_to_camera, (3, 3)).tolist(), [0.0, 0.0, 0.0]]
        entries.append(
            PairEntry(
                gt_fpath=str(tree / pair.gt_path),
                f_fpath=str(tree / pair.f_path),
                image_set=pair.scene,
                best_alignment=[pair.shift_y, pair.shift_x],
                best_alignment_loss=pair.alignment_loss,
                mask_fpath=str(mask),
                mask_mean=pair.mask_mean,
                is_bayer=pair.sensor == "Bayer",
                rgb_xyz_matrix=matrix,
                overexposure_lb=pair.overexposure_lb,
                raw_gain=pair.raw_gain,
                rgb_gain=pair.rgb_gain,
                rgb_msssim_score=pair.rgb_msssim,
                crops=[] if tiles is None else tiles.shared(pair),
            )
        )
    write_descriptor(path, entries)
    return entries


class _TilesOf:
    """The tiles that RawNIND's own tool cut: `<file>.<x>_<y>.npy` of mosaics, `.tif` of pictures. Each folder is listed
    once, and a tile belongs to the file whose whole name it begins with."""

    def __init__(self, crops: Path) -> None:
        self.bayer, self.picture = crops / "src" / "Bayer", crops / "proc" / "lin_rec2020"
        self._listed: dict[Path, dict[str, dict[tuple[int, int], Path]]] = {}

    def shared(self, pair: Pair) -> list[Tile]:
        """Those that both images of a pair have, by row and column."""
        found = {
            (kind, side): self._of(root / pair.scene, path)
            for kind, root in (("bayer", self.bayer), ("linrec2020", self.picture))
            for side, path in (("gt", pair.gt_path), ("f", pair.f_path))
        }
        places = found["linrec2020", "gt"].keys() & found["linrec2020", "f"].keys()
        if pair.sensor == "Bayer":
            places &= found["bayer", "gt"].keys() & found["bayer", "f"].keys()
        used = [key for key in found if key[0] == "linrec2020" or pair.sensor == "Bayer"]
        return [
            Tile.from_mapping(
                {"coordinates": [x, y]} | {f"{side}_{kind}_fpath": str(found[kind, side][x, y]) for kind, side in used}
            )
            for y, x in sorted((y, x) for x, y in places)
        ]

    def _of(self, scene: Path, path: str) -> dict[tuple[int, int], Path]:
        folder = scene / "gt" if Path(path).parent.name.lower() == "gt" else scene
        if folder not in self._listed:
            listing: dict[str, dict[tuple[int, int], Path]] = {}
            for tile in folder.iterdir() if folder.is_dir() else ():
                name, _, place = tile.stem.rpartition(".")
                x, _, y = place.partition("_")
                if name and x.isdigit() and y.isdigit():
                    listing.setdefault(name, {})[int(x), int(y)] = tile
            self._listed[folder] = listing
        return self._listed[folder].get(Path(path).name, {})


@dataclass(frozen=True)
class Imported:
    """What `import_descriptor` left in a prepared folder.

    rows  of its index
    """

    folder: Path
    rows: tuple[Row, ...]

    @property
    def failures(self) -> list[Failure]:
        return [row for row in self.rows if isinstance(row, Failure)]

    @property
    def exit_code(self) -> int:
        """1 when an entry could not be taken over."""
        return 1 if self.failures else 0

    def __str__(self) -> str:
        lines = [f"{failure.gt_path} with {failure.f_path}: {failure.error}" for failure in self.failures]
        num_pairs = len(self.rows) - len(self.failures)
        return "\n".join([*lines, f"{self.folder}: {num_pairs} pairs, {len(self.failures)} failed"])


def import_descriptor(
    path: str | Path,
    folder: str | Path,
    *,
    base: str | Path = ".",
    reader: Reader | None = None,
    progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter,
) -> Imported:
    """A prepared folder of what a descriptor says: its shifts, gains, scores and masks, and the raws they belong to.

    base      what relative paths in it count from: the folder that RawNIND's tools ran in
    progress  hands on the entries while it shows how far they are
    returns   an entry whose files cannot be used fails alone; clean images without a noisy one are left out
    raises    DataError for a descriptor that cannot be read
    """
    folder, base, reader = Path(folder), Path(base), reader or DirectReader()
    images: dict[tuple[str, str], Image | str] = {}

    def image_of(name: str, scene: str) -> Image | str:
        if (scene, name) not in images:
            try:
                images[scene, name] = ingest(base / name, scene, folder, reader)
            except (RawFileError, ImageFileError) as error:
                images[scene, name] = error.reason
        return images[scene, name]

    rows: list[Row] = []
    for entry in progress(read_descriptor(path)):
        if isinstance(entry, PairEntry):
            sides = [image_of(name, entry.image_set) for name in (entry.gt_fpath, entry.f_fpath)]
            rows.append(_row(entry, sides, folder, base))
    write_index(folder, rows)
    return Imported(folder, tuple(rows))


def _row(entry: PairEntry, sides: list[Image | str], folder: Path, base: Path) -> Row:
    sensor: Sensor = "Bayer" if entry.is_bayer else "X-Trans"
    names = {
        "scene": entry.image_set,
        "gt_path": entry.gt_fpath,
        "f_path": entry.f_fpath,
        "f_is_clean": Path(entry.f_fpath).parent.name.lower() == "gt",
    }
    gt, f = sides
    try:
        for side, name in ((gt, entry.gt_fpath), (f, entry.f_fpath)):
            problem = side if isinstance(side, str) else side.unusable
            if problem:
                raise DataError(f"{name}: {problem}")
        assert isinstance(gt, Image)
        assert isinstance(f, Image)
        if {gt.sensor, f.sensor} != {sensor}:
            raise DataError(f"is_bayer is {entry.is_bayer}, but the files are of {gt.sensor} and {f.sensor} sensors")
        dy, dx = entry.best_alignment
        shared = overlap((dy, dx), gt.size, f.size, lattice=2 if entry.is_bayer else 1)
        valid = np.zeros((shared.height, shared.width), bool)
        # RawNIND's masks may be a few lines smaller, since sides are cut to multiples of 4 there.
        theirs = _read_mask(base / entry.mask_fpath)[: shared.height, : shared.width]
        valid[: theirs.shape[0], : theirs.shape[1]] = theirs
    except (DataError, ValueError) as error:
        shas = [side.sha256 if isinstance(side, Image) else None for side in sides]
        return Failure(**names, sensor=sensor, gt_sha256=shas[0], f_sha256=shas[1], error=str(error))
    mask = mask_file(entry.image_set, gt.sha256, f.sha256)
    packed = pack_mask(valid)
    save_array(folder / mask, packed)
    made_of = [gt.sha256, f.sha256, [dy, dx], hashlib.sha256(packed.tobytes()).hexdigest(), entry.rgb_gain]
    return pair_of(
        replace(gt, overexposure_lb=entry.overexposure_lb),
        f,
        **names,
        shift_y=dy,
        shift_x=dx,
        offset_y=float(dy),
        offset_x=float(dx),
        alignment_error=None,
        alignment_sigma=None,
        alignment_ok=gt.sha256 == f.sha256 or entry.best_alignment_loss <= _CERTAIN_LOSS,
        alignment_loss=entry.best_alignment_loss,
        raw_gain=entry.raw_gain,
        rgb_gain=entry.rgb_gain,
        mask_mean=valid_fraction(valid),
        rgb_msssim=entry.rgb_msssim_score,
        mask=mask,
        target=None if entry.is_bayer else gt.array,
        key=hashlib.sha256(json.dumps(["descriptor", *made_of]).encode()).hexdigest(),
    )


def _read_mask(path: Path) -> np.ndarray:
    try:
        with PillowImage.open(path) as image:
            return np.asarray(image.convert("L")) >= 128
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no mask that can be read ({error}): copy it again") from None
