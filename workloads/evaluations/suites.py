"""What a bundle is evaluated on: suites as data. Each names noisy images with their truths, and may be narrowed by
camera, ISO, score and split."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import pyarrow.lib
import pyarrow.parquet
from pydantic import Field, field_validator, model_validator

from library.config import Frozen, Location
from library.datasets.paired import Quality
from library.errors import DataError, RawFileError
from library.files.raw import read_raw
from library.pairs.index import Pair, read_index
from library.pairs.split import Split
from workloads.suite import find_pairs

_PICTURE_SUFFIXES = frozenset([".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jxl"])
Range = tuple[float, float]
Develop = Literal["none", "ours", "darktable"]


class Sample(NamedTuple):
    """A noisy image of a suite, and its truth. None is unknown.

    noisy   raw file, or picture of a suite of pictures
    truth   EXR in camera RGB, or picture
    scene   images of one scene are not independent: intervals are over scenes
    score   MS-SSIM of the noisy image, 1 without noise
    pair    key in the index of a prepared folder; the paths are then of its arrays
    """

    name: str
    noisy: str
    truth: str
    scene: str
    camera: str | None = None
    iso: float | None = None
    score: float | None = None
    split: str | None = None
    pair: str | None = None


class Buckets(Frozen):
    """Sets of a suite's images by their score, each a point of a curve of quality over noise. As of RawNIND."""

    at_most: tuple[float, ...] = (0.85, 0.9, 0.97, 0.99)
    """Scores up to which images are counted."""
    at_least: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
    """Scores from which images are counted."""

    def members(self, scores: Mapping[str, float]) -> dict[str, list[str]]:
        """Label of each bucket that holds any -> the images in it, by their scores, from the noisiest on."""
        found = {f"≤ {edge:g}": [name for name, score in scores.items() if score <= edge] for edge in self.at_most}
        found |= {f"≥ {edge:g}": [name for name, score in scores.items() if score >= edge] for edge in self.at_least}
        return {label: names for label, names in found.items() if names}


class _Filtered(Frozen):
    """What every suite of recorded images may be narrowed by."""

    cameras: tuple[str, ...] = ()
    """Only of these, as `stillgrain inspect` names them; all when empty."""
    not_cameras: tuple[str, ...] = ()
    """Not of these: those of the training, for unseen cameras."""
    iso: Range | None = None
    """From, to."""
    score: Range | None = None
    """From, to: MS-SSIM of the noisy image, as an index or `names` tells it."""
    split: str | None = None
    """Only images that an index puts here: test."""
    names: str = ""
    """Regular expression that every name must match from its beginning; its groups scene, camera, iso and score say
    what a name tells: `(?P<scene>.+)_[0-9]+`. It comes before what an index says. Without, images of one truth are a
    scene."""
    buckets: Buckets | None = None
    """Also a curve over the noise of the input: sets of images by score. `{}` gives RawNIND's."""
    develop: Develop = "none"
    """Also compare 8-bit pictures. ours: as `stillgrain develop` makes them, with white balance, exposure and sRGB;
    darktable: as darktable-cli does by its defaults, of raws and where it is installed."""

    @field_validator("iso", "score")
    @classmethod
    def _rises(cls, span: Range | None) -> Range | None:
        if span is not None and span[0] > span[1]:
            raise ValueError(f"[{span[0]:g}, {span[1]:g}] holds nothing: give the lower end first")
        return span

    @field_validator("names")
    @classmethod
    def _is_a_pattern(cls, names: str) -> str:
        try:
            groups = re.compile(names).groupindex
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if unknown := sorted(groups.keys() - _GROUPS.keys()):
            raise ValueError(f"has a group '{unknown[0]}'; known: {', '.join(_GROUPS)}")
        return names

    @property
    def of_pictures(self) -> bool:
        """Whether it holds display pictures, and no raws."""
        return False

    @property
    def noise_free(self) -> bool:
        """Whether the truth itself is what a method is given."""
        return False

    @property
    def prepared_folder(self) -> str | None:
        """Where its images are pairs that were prepared."""
        return None

    def samples(self) -> list[Sample]:
        """Sorted by name. A raw that cannot be read passes the filters of camera and ISO: it will be named as failed,
        and not be left out in silence. Raises `DataError` for what is not there, and when the filters leave nothing."""
        left, unreadable = [self._named(sample) for sample in self._all()], []
        if self.cameras or self.not_cameras or self.iso:
            opened = [(sample, _with_facts(sample)) for sample in left]
            unreadable = [sample for sample, facts in opened if facts is None]
            left = [facts for _, facts in opened if facts is not None]
        for key, field, wanted, keep in self._filters():
            there = [getattr(sample, field) for sample in left]
            if left and all(found is None for found in there):
                raise DataError(
                    f"{key}: {_shown(wanted)} cannot be chosen, since nothing tells the {field} of any image "
                    "here: give an index with that column, or leave the filter out"
                )
            left = [sample for sample, found in zip(left, there, strict=True) if keep(found)]
            if there and not left:
                known = sorted({_shown(found) for found in there})
                raise DataError(
                    f"{key}: {_shown(wanted)} leaves none of {len(there)} images, which have {', '.join(known[:8])}"
                    f"{' ...' if len(known) > 8 else ''}: choose of these, or leave the filter out"
                )
        return sorted([*left, *unreadable], key=lambda sample: sample.name)

    def _all(self) -> list[Sample]:
        raise NotImplementedError(f"{type(self).__name__} must say what images it has")

    def _named(self, sample: Sample) -> Sample:
        """With what its name tells."""
        if not self.names:
            return sample
        if not (match := re.match(self.names, sample.name)):
            raise DataError(f"names: '{sample.name}' does not match {self.names}: let it match all, or move the image")
        try:
            told = {key: _GROUPS[key](text) for key, text in match.groupdict().items() if text is not None}
        except ValueError as error:
            raise DataError(f"names: of '{sample.name}' {error}: iso and score are numbers") from None
        return sample._replace(**told)

    def _filters(self) -> Iterator[tuple[str, str, Any, Callable[[Any], bool]]]:
        """Key, field of a sample that it looks at, what is wanted, and whether a sample of that value stays."""
        cameras, others = ({name.casefold() for name in names} for names in (self.cameras, self.not_cameras))
        if self.split is not None:
            yield "split", "split", self.split, lambda found: found == self.split
        if cameras:
            yield "cameras", "camera", self.cameras, lambda found: (found or "").casefold() in cameras
        if others:
            yield "not_cameras", "camera", self.not_cameras, lambda found: (found or "").casefold() not in others
        for key, span in (("iso", self.iso), ("score", self.score)):
            if span is not None:
                low, high = span
                yield key, key, span, lambda found, low=low, high=high: found is not None and low <= found <= high


class Pairs(_Filtered):
    """A folder of raws and one of their truths: what `workload: simulate` writes."""

    kind: Literal["pairs"] = "pairs"
    raws: Location
    """Folder of noisy raws, searched with its subfolders; every node must see it at the same path."""
    truth: Location
    """Folder of their truths by the same names: EXR in camera RGB, without noise, of the same pixels."""
    truth_of: dict[str, str] = Field(default={})
    """Raw -> truth, paths below their folders without suffix, where they are not named alike; then only these count."""

    def _all(self) -> list[Sample]:
        pairs = find_pairs(Path(self.raws), Path(self.truth), self.truth_of)
        return [
            Sample(name, str(raw), str(truth), scene=str(truth.relative_to(self.truth).with_suffix("")))
            for name, (raw, truth) in pairs.items()
        ]


class Index(_Filtered):
    """A table of images: columns raw and truth, and where they are known name, scene, camera, iso, score, split."""

    kind: Literal["index"] = "index"
    index: Location
    """CSV or Parquet; paths in it count from its folder."""

    def _all(self) -> list[Sample]:
        rows = _table(Path(self.index))
        samples = [self._sample(row, number) for number, row in enumerate(rows, 1)]
        names = [sample.name for sample in samples]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(
                f"{self.index}: '{twice}' is there twice: give each image a name of its own in column 'name'"
            )
        return samples

    def _sample(self, row: Mapping[str, Any], number: int) -> Sample:
        folder, texts = Path(self.index).parent, {k: v for k, v in row.items() if v is not None and v != ""}
        for column in ("raw", "truth"):
            if column not in texts:
                raise DataError(f"{self.index}: row {number} has no '{column}': give a path there")
            if not (folder / texts[column]).is_file():
                raise DataError(
                    f"{self.index}: row {number}: there is no {folder / texts[column]}: put its {column} right"
                )
        raw, truth = (str(folder / texts[column]) for column in ("raw", "truth"))
        try:
            known = {key: _GROUPS[key](texts[key]) for key in ("scene", "camera", "iso", "score") if key in texts}
        except ValueError as error:
            raise DataError(f"{self.index}: row {number}: {error}; iso and score are numbers") from None
        name = str(texts.get("name", Path(texts["raw"]).with_suffix("")))
        sample = Sample(name, raw, truth, scene=str(texts["truth"]), split=texts.get("split"))
        return sample._replace(**known)


class SrgbPairs(_Filtered):
    """A folder of noisy display pictures and their truths, for networks that take linear pictures."""

    kind: Literal["srgb_pairs"] = "srgb_pairs"
    folder: Location
    """Searched with its subfolders: PNG, TIFF, JPEG, JPEG XL in sRGB."""
    noisy: str = Field(default="_noisy", min_length=1)
    """How the name of a noisy picture ends, without suffix."""
    clean: str = Field(default="_clean", min_length=1)
    """How that of its truth ends."""

    @field_validator("develop")
    @classmethod
    def _has_no_raws(cls, develop: Develop) -> Develop:
        if develop == "darktable":
            raise ValueError("darktable develops raws, and this suite holds pictures: use ours, or none")
        return develop

    @property
    def of_pictures(self) -> bool:
        return True

    def _all(self) -> list[Sample]:
        folder = Path(self.folder)
        if not folder.is_dir():
            raise DataError(f"folder: {folder} is not a folder; give one of noisy and clean pictures")
        files = {
            str(file.relative_to(folder).with_suffix("")): file
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in _PICTURE_SUFFIXES and not file.name.startswith(".")
        }
        noisy = {name.removesuffix(self.noisy): file for name, file in files.items() if name.endswith(self.noisy)}
        if not noisy:
            raise DataError(
                f"{folder} holds no pictures whose names end with '{self.noisy}': set noisy to what they do"
            )
        if alone := [name for name in noisy if name + self.clean not in files]:
            raise DataError(f"{folder}: {alone[0]}{self.noisy} has no {alone[0]}{self.clean}: add it, or set clean")
        found = {name: (str(file), str(files[name + self.clean])) for name, file in noisy.items()}
        return [Sample(name, file, truth, scene=name) for name, (file, truth) in found.items()]


class Prepared(_Filtered):
    """Pairs of clean and noisy raws that `workload: prepare` made: scenes that a training left out. X-Trans pairs are
    not among them, since networks for mosaics are given Bayer ones."""

    kind: Literal["prepared"] = "prepared"
    prepared: Location
    """The folder that `workload: prepare` made, which every node must see at the same path."""
    part: Literal["test", "validation", "unseen"] = "test"
    """Which scenes, as `scenes` tells them apart."""
    scenes: Split = Split()
    """The training's `dataset.split`."""
    quality: Quality = Quality()
    """Which pairs are good enough, as in the training's `dataset.quality`; what it says of crops is not asked."""

    @property
    def prepared_folder(self) -> str | None:
        return self.prepared

    def _all(self) -> list[Sample]:
        rows = [row for row in read_index(self.prepared) if isinstance(row, Pair)]
        names = sorted({row.scene for row in rows})
        # A part of few scenes is what the training takes, which needs one for itself; the others go by name alone.
        if self.part == "validation":
            parts = self.scenes.parts(names)
        else:
            parts = {name: self.scenes.part_of(name) for name in names}
        noisy = [row for row in rows if parts[row.scene] == self.part and not row.f_is_clean]
        found = [row for row in noisy if row.sensor == "Bayer" and self.quality.accepts(row)]
        if not found:
            raise DataError(
                f"{self.prepared}: of {len(names)} scenes {sum(part == self.part for part in parts.values())} are for "
                f"{self.part}, and of their {len(noisy)} noisy images none is of a Bayer sensor and good enough for "
                f"quality; see `stillgrain data summary {self.prepared}`"
            )
        return [self._sample(row) for row in found]

    def _sample(self, row: Pair) -> Sample:
        folder, truth = Path(self.prepared), row.target or row.gt_mosaic
        assert row.f_mosaic is not None
        assert truth is not None
        iso = "ISO unknown" if row.f_iso is None else f"ISO {row.f_iso:g}"
        return Sample(
            # A scene may have one ISO twice, and one noisy image several clean ones.
            f"{row.scene}/{iso} {row.f_sha256[:6]}-{row.gt_sha256[:6]}",
            str(folder / row.f_mosaic),
            str(folder / truth),
            scene=row.scene,
            camera=row.camera or None,
            iso=row.f_iso,
            score=row.rgb_msssim,
            split=self.part,
            pair=row.key,
        )


Recorded = Annotated[Pairs | Index | Prepared, Field(discriminator="kind")]


class Clean(Frozen):
    """The truths of another suite, sampled by the CFA of their raws: what does a denoiser do to a clean raw?"""

    kind: Literal["clean"] = "clean"
    of: Recorded
    """Suite of raws; of the raws of one truth, the first by name."""

    @model_validator(mode="after")
    def _needs_no_buckets(self) -> Self:
        if self.of.buckets is not None:
            raise ValueError("of.buckets: images without noise have no scores: leave it out")
        return self

    @property
    def of_pictures(self) -> bool:
        return False

    @property
    def noise_free(self) -> bool:
        return True

    @property
    def prepared_folder(self) -> str | None:
        return self.of.prepared_folder

    @property
    def develop(self) -> Develop:
        return self.of.develop

    @property
    def buckets(self) -> Buckets | None:
        return None

    def samples(self) -> list[Sample]:
        found: dict[str, Sample] = {}
        for sample in self.of.samples():
            found.setdefault(sample.truth, sample)
        return list(found.values())


Suite = Annotated[Pairs | Index | Prepared | SrgbPairs | Clean, Field(discriminator="kind")]


# --- reading ----------------------------------------------------------------------------------------------------------


def _number(value: Any) -> float:
    return float(value)


_GROUPS: dict[str, Callable[[Any], Any]] = {"scene": str, "camera": str, "iso": _number, "score": _number}


def _with_facts(sample: Sample) -> Sample | None:
    """With camera and ISO from the raw file, where nothing else told them. None when it cannot be read."""
    if sample.pair is not None or (sample.camera is not None and sample.iso is not None):
        return sample
    if Path(sample.noisy).suffix.lower() in _PICTURE_SUFFIXES:
        return sample
    try:
        raw = read_raw(sample.noisy)
    except RawFileError:
        return None
    camera = raw.metadata().camera or None
    return sample._replace(
        camera=camera if sample.camera is None else sample.camera, iso=raw.iso if sample.iso is None else sample.iso
    )


def _table(path: Path) -> Sequence[Mapping[str, Any]]:
    """Rows of a CSV or Parquet file."""
    try:
        if path.suffix.lower() == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error, pyarrow.lib.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as an index ({error}): give a CSV or Parquet file") from None
    if not rows:
        raise DataError(f"{path}: holds no rows: give one for each image, with columns raw and truth")
    return rows


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None:
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)
