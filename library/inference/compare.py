"""What differs between two files of one photograph: levels, means, shadows, highlights, what is clipped, and the tags.

Files are compared in the domain nearest to the sensor that both have:

    mosaic       a raw with a raw, or with a linear DNG sampled by the raw's CFA; black at 0, white at 1
    camera_rgb   two linear DNGs; black at 0, white at 1
    lin_rec2020  one of these with an EXR: demosaiced, balanced as shot, upright; clipped at nothing
    linear       two pictures that are proportional to light
    srgb         anything with a picture to look at: developed, upright, 0 to 1

What is developed is developed with the white balance, matrix and exposure of one and the same file, so that a
difference is one of samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from library.errors import DataError, ImageFileError, RawFileError, StillgrainError
from library.files.atomic import whole_file
from library.files.isolate import IsolatedReader
from library.files.linear_dng import LinearDng, is_linear_dng, read_linear_dng
from library.files.markesteijn import demosaic
from library.files.picture import DisplayImage, read_image, write_png
from library.files.raw import RAW_SUFFIXES, RawImage, read_raw
from library.files.tags import all_tags
from library.inference.difference import difference_picture
from library.inference.outputs import ENCODERS, Format, exposure_of, upright
from library.metrics import MS_SSIM_SMALLEST_SIDE, ms_ssim
from library.ops.cfa import BAYER_PHASES, sample_cfa
from library.ops.color import lin_rec2020_to_lin_srgb
from library.ops.develop import auto_exposure_ev, camera_rgb_to_balanced_lin_rec2020, develop_camera_rgb
from library.ops.levels import normalize_levels
from library.ops.transfer import srgb_encode

Domain = Literal["mosaic", "camera_rgb", "lin_rec2020", "linear", "srgb"]
PERCENTILES = (0.1, 1.0, 5.0, 50.0, 95.0, 99.0, 99.9)
"""From the deepest shadows to the highlights."""
_MS_SSIM_LARGEST_SIDE = 1024
# Rows that are developed at once, and those around them that their demosaic looks at; even, which keeps the phase.
_BAND, _CONTEXT = 512, 8
_AT_ONCE = 2**22

_File = RawImage | LinearDng | DisplayImage


@dataclass(frozen=True)
class Channel:
    """One colour of both files, over the samples that are finite in both.

    mean, percentiles  of the first and of the second file, in the domain's unit
    drift              the second mean less the first, in the domain's unit
    clipped            samples that are saturated in the first file, in the second, in both
    not_finite         samples that are NaN or infinite in either
    """

    samples: int
    mean: tuple[float, float]
    percentiles: dict[str, tuple[float, float]]
    clipped: tuple[int, int, int]
    identical: int
    not_finite: int

    @property
    def drift(self) -> float:
        return self.mean[1] - self.mean[0]


@dataclass(frozen=True)
class Comparison:
    """Two files of one photograph.

    metrics   `psnr.<domain>` over all finite samples, peak 1; `psnr` and `ms_ssim` of both developed to sRGB, the
              latter of at most 1024 x 1024 in the middle, and missing for sides up to 160 px
    lost, added, changed  tags by name, with what they say; `kept` are equal
    """

    first: str
    second: str
    height: int
    width: int
    domain: Domain
    channels: dict[str, Channel]
    metrics: dict[str, float]
    lost: dict[str, str]
    added: dict[str, str]
    changed: dict[str, tuple[str, str]]
    kept: int

    @property
    def identical(self) -> bool:
        """Whether every sample is."""
        return all(channel.identical == channel.samples for channel in self.channels.values())

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain JSON types; what is infinite or unknown is null."""
        return _finite(
            {
                "first": self.first,
                "second": self.second,
                "height": self.height,
                "width": self.width,
                "domain": self.domain,
                "identical": self.identical,
                "metrics": self.metrics,
                "channels": {
                    name: {
                        "samples": c.samples,
                        "mean": c.mean,
                        "drift": c.drift,
                        "percentiles": c.percentiles,
                        "clipped": dict(zip(("first", "second", "both"), c.clipped, strict=True)),
                        "identical": c.identical,
                        "not_finite": c.not_finite,
                    }
                    for name, c in self.channels.items()
                },
                "tags": {"lost": self.lost, "added": self.added, "changed": self.changed, "kept": self.kept},
            }
        )

    def __str__(self) -> str:
        lines = [
            f"{self.first} -> {self.second}",
            f"  {self.width} x {self.height}, as {self.domain}"
            + (", every sample identical" if self.identical else ""),
            "  " + ", ".join(f"{name} {value:.5g}" for name, value in self.metrics.items()),
            "",
            f"  {'':7}{'mean':>10}{'drift %':>10}"
            + "".join(f"{'p' + p:>10}" for p in next(iter(self.channels.values())).percentiles)
            + f"{'clipped':>12}",
        ]
        for name, c in self.channels.items():
            for side, label in enumerate((name, "")):
                drift = f"{100 * c.drift / c.mean[0]:+.3f}" if side and c.mean[0] else ""
                values = "".join(f"{pair[side]:10.4g}" for pair in c.percentiles.values())
                lines.append(f"  {label:7}{c.mean[side]:10.4g}{drift:>10}{values}{c.clipped[side]:12}")
            if c.clipped[0] != c.clipped[2]:
                lines.append(f"  {'':7}{c.clipped[0] - c.clipped[2]} clipped samples are so no longer")
            if c.not_finite:
                lines.append(f"  {'':7}{c.not_finite} samples are NaN or infinite")
        lines += ["", f"  {self.kept} tags are the same"]
        lines += [f"  - {name}: {value}" for name, value in self.lost.items()]
        lines += [f"  + {name}: {value}" for name, value in self.added.items()]
        lines += [f"  ~ {name}: {one} -> {other}" for name, (one, other) in self.changed.items()]
        return "\n".join(lines)


def compare_files(first: str | Path, second: str | Path, *, isolate: bool = False) -> tuple[Comparison, np.ndarray]:
    """Compares two files of one size: raws, DNGs, EXR, TIFF, PNG, JPEG, JPEG XL.

    isolate  decode them in a child process, which may crash or hang without harm
    returns  the comparison, and a picture of it: `difference_picture`
    raises   RawFileError, ImageFileError for a file that cannot be read, or is of another size than the first
    """
    with IsolatedReader() as reader:
        files = [_read(path, reader if isolate else None) for path in (first, second)]
    domain = _domain(*files)
    facts = next((file for file in files if not isinstance(file, DisplayImage)), None)
    one, other = (_values(file, domain, files, facts) for file in files)
    if one.shape != other.shape:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (other.shape, one.shape)]
        raise ImageFileError(second, f"is {sizes[0]} and {first} is {sizes[1]}: compare files of one size")
    clipped = [_clipped(file, domain, value) for file, value in zip(files, (one, other), strict=True)]
    channels = {
        name: _channel(one[where], other[where], clipped[0][where], clipped[1][where])
        for name, where in _channels(files, domain).items()
    }
    developed = [_developed(file, facts) for file in files]
    tags = [all_tags(path) for path in (first, second)]
    return Comparison(
        first=str(first),
        second=str(second),
        height=one.shape[0],
        width=one.shape[1],
        domain=domain,
        channels=channels,
        metrics=({} if domain == "srgb" else {f"psnr.{domain}": _psnr(one, other)}) | _developed_metrics(*developed),
        lost={name: value for name, value in tags[0].items() if name not in tags[1]},
        added={name: value for name, value in tags[1].items() if name not in tags[0]},
        changed={name: (value, tags[1][name]) for name, value in tags[0].items() if tags[1].get(name, value) != value},
        kept=sum(tags[1].get(name) == value for name, value in tags[0].items()),
    ), difference_picture(*developed)


def compare_paths(
    first: Path, second: Path, *, picture: Path | None = None, isolate: bool = False
) -> Iterator[Comparison | StillgrainError]:
    """Compares two files, or those of two folders that are called alike but for their suffix, one after another.

    picture  a PNG of the difference is written there; for folders, PICTURE/STEM.png for each pair
    yields   an error in place of a pair that cannot be compared, when there are several
    raises   DataError when two folders hold no pair; for two files, what `compare_files` raises
    """
    if not (first.is_dir() and second.is_dir()):
        comparison, difference = compare_files(first, second, isolate=isolate)
        if picture:
            write_png(picture, difference)
        yield comparison
        return
    for one, other in paired_files(first, second):
        try:
            comparison, difference = compare_files(one, other, isolate=isolate)
            if picture:
                write_png(picture / one.relative_to(first).with_suffix(".png"), difference)
            yield comparison
        except StillgrainError as error:
            yield error


def paired_files(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """The files of two folders that are called alike but for their suffix, in order of their names.

    raises  DataError when none are
    """
    ones, others = (
        {file.relative_to(folder).with_suffix(""): file for file in sorted(folder.rglob("*")) if file.is_file()}
        for folder in (first, second)
    )
    pairs = [(ones[name], others[name]) for name in ones if name in others]
    if not pairs:
        raise DataError(
            f"{first} and {second} hold no files that are called alike: name two files, or two such folders"
        )
    return pairs


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(path: str | Path, reader: IsolatedReader | None) -> _File:
    if is_linear_dng(path):
        return reader.read_linear_dng(path) if reader else read_linear_dng(path)
    if Path(path).suffix.lower() in RAW_SUFFIXES:
        return reader.read_raw(path) if reader else read_raw(path)
    try:
        return reader.read_image(path) if reader else read_image(path)
    except ImageFileError as no_picture:
        try:
            return reader.read_raw(path) if reader else read_raw(path)
        except RawFileError:
            raise no_picture from None


# --- domains ----------------------------------------------------------------------------------------------------------


def _domain(one: _File, other: _File) -> Domain:
    pictures = [file for file in (one, other) if isinstance(file, DisplayImage)]
    if any(picture.encoding == "srgb" for picture in pictures):
        return "srgb"
    if pictures:
        return "linear" if len(pictures) == 2 else "lin_rec2020"
    return "mosaic" if any(isinstance(file, RawImage) for file in (one, other)) else "camera_rgb"


def _values(file: _File, domain: Domain, files: Sequence[_File], facts: _File | None) -> np.ndarray:
    """float32 (H, W) of a mosaic, otherwise (H, W, 3)."""
    if domain == "mosaic":
        if isinstance(file, RawImage):
            return _mosaic(file).numpy()
        assert isinstance(file, LinearDng)
        cfa = next(f.cfa for f in files if isinstance(f, RawImage))
        return sample_cfa(_chw(file.camera_rgb), cfa).numpy()
    if domain == "camera_rgb":
        assert isinstance(file, LinearDng)
        return file.camera_rgb
    if isinstance(file, DisplayImage) and domain in ("linear", "lin_rec2020"):
        return file.rgb
    if domain == "lin_rec2020":
        assert facts is not None
        rgb = camera_rgb_to_balanced_lin_rec2020(_camera_rgb(file), **_color(facts))
        return upright(_hwc(rgb), file.orientation)  # pyright: ignore[reportAttributeAccessIssue]
    return _hwc(_developed(file, facts))


def _channels(files: Sequence[_File], domain: Domain) -> dict[str, Any]:
    """Index of each colour's samples, by its name."""
    if domain != "mosaic":
        return {name: (..., index) for index, name in enumerate("RGB")}
    cfa = next(file.cfa for file in files if isinstance(file, RawImage))
    if len(cfa) == 4:
        greens = iter(("G1", "G2"))
        names = [letter if letter != "G" else next(greens) for letter in cfa]
        return {
            names[i]: (slice(i // 2, None, 2), slice(i % 2, None, 2)) for i in sorted(range(4), key=names.__getitem__)
        }
    shape = next(file.mosaic.shape for file in files if isinstance(file, RawImage))
    tile = np.array(list(cfa)).reshape(6, 6)
    labels = np.tile(tile, (shape[0] // 6 + 1, shape[1] // 6 + 1))[: shape[0], : shape[1]]
    return {name: labels == name for name in "RGB"}


def _clipped(file: _File, domain: Domain, values: np.ndarray) -> np.ndarray:
    """Where a sample is saturated, in the shape of `values`; nowhere in a domain that is not clipped."""
    if domain == "mosaic" and isinstance(file, RawImage):
        height, width = file.mosaic.shape
        level = file.clipping_level
        rows, columns = level.shape
        return file.mosaic >= np.tile(level, (height // rows + 1, width // columns + 1))[:height, :width]
    if domain in ("mosaic", "camera_rgb", "srgb"):
        return values >= 1
    return np.zeros(values.shape, bool)


def _mosaic(raw: RawImage) -> Tensor:
    return normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))


def _camera_rgb(file: _File) -> Tensor:
    if isinstance(file, RawImage):
        return demosaic(_mosaic(file), cfa=file.cfa, as_shot_white_balance=file.as_shot_white_balance)
    assert isinstance(file, LinearDng)
    return _chw(file.camera_rgb)


def _color(facts: _File) -> dict[str, np.ndarray | None]:
    assert not isinstance(facts, DisplayImage)
    return {"as_shot_white_balance": facts.as_shot_white_balance, "xyz_to_camera": facts.xyz_to_camera}


def _developed(file: _File, facts: _File | None) -> Tensor:
    """(3, H, W) sRGB in [0, 1], upright."""
    if isinstance(file, DisplayImage):
        rgb = _chw(file.rgb)
        if file.encoding == "srgb":
            return rgb
        if file.color_space == "rec2020":
            rgb = lin_rec2020_to_lin_srgb(rgb)
        return srgb_encode((rgb.nan_to_num() * 2.0 ** _exposure(facts)).clamp(0, 1))
    assert facts is not None
    color, exposure_ev = _color(facts), _exposure(facts)
    bands = [develop_camera_rgb(band, **color, exposure_ev=exposure_ev) for band in _bands(file)]
    return _chw(np.ascontiguousarray(upright(_hwc(torch.cat(bands, dim=1)), file.orientation)))


def _bands(file: RawImage | LinearDng) -> Iterator[Tensor]:
    """Camera RGB (3, h, W) from top to bottom, so that a large picture does not exist in several forms at once."""
    if isinstance(file, LinearDng):
        for top in range(0, file.samples.shape[0], _BAND):
            yield _chw(replace(file, samples=file.samples[top : top + _BAND]).camera_rgb)
    elif file.cfa not in BAYER_PHASES:
        yield _camera_rgb(file)  # Markesteijn's demosaic works in tiles of its own
    else:
        mosaic = _mosaic(file)
        for top in range(0, len(mosaic), _BAND):
            above = min(top, _CONTEXT)
            band = demosaic(mosaic[top - above : top + _BAND + _CONTEXT], cfa=file.cfa)
            yield band[:, above : above + _BAND]


def _exposure(facts: _File | None) -> float:
    if isinstance(facts, RawImage):
        return exposure_of(facts)
    return auto_exposure_ev(_camera_rgb(facts), **_color(facts)) if facts is not None else 0.0


# --- numbers ----------------------------------------------------------------------------------------------------------


def _channel(one: np.ndarray, other: np.ndarray, one_clipped: np.ndarray, other_clipped: np.ndarray) -> Channel:
    finite = np.isfinite(one) & np.isfinite(other)
    values = [side[finite].astype(np.float64) for side in (one, other)]
    points = [np.percentile(v, PERCENTILES) if v.size else np.full(len(PERCENTILES), np.nan) for v in values]
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return Channel(
        samples=one.size,
        mean=(_mean(values[0]), _mean(values[1])),
        percentiles={f"{p:g}": (float(a), float(b)) for p, a, b in zip(PERCENTILES, *points, strict=True)},
        clipped=(int(one_clipped.sum()), int(other_clipped.sum()), int((one_clipped & other_clipped).sum())),
        identical=int(same.sum()),
        not_finite=int((~finite).sum()),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """dB, peak 1, over what is finite in both; NaN where nothing is."""
    total, count = 0.0, 0
    ones, others = one.reshape(-1), other.reshape(-1)
    for start in range(0, one.size, _AT_ONCE):
        with np.errstate(invalid="ignore"):  # infinite less infinite, and signalling NaN
            error = (ones[start : start + _AT_ONCE].astype(np.float64) - others[start : start + _AT_ONCE]) ** 2
        error = error[np.isfinite(error)]
        total, count = total + float(error.sum()), count + error.size
    if not count:
        return math.nan
    return math.inf if total == 0 else -10 * math.log10(total / count)


def _developed_metrics(one: Tensor, other: Tensor) -> dict[str, float]:
    metrics = {"psnr": _psnr(one.numpy(), other.numpy())}
    height, width = one.shape[-2:]
    if min(height, width) >= MS_SSIM_SMALLEST_SIDE:
        sides = [min(side, _MS_SSIM_LARGEST_SIDE) for side in (height, width)]
        top, left = (height - sides[0]) // 2, (width - sides[1]) // 2
        crops = [x[None, :, top : top + sides[0], left : left + sides[1]] for x in (one, other)]
        metrics["ms_ssim"] = float(ms_ssim(crops[0], crops[1], torch.ones(1, 1, *sides)))
    return metrics


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, tuple | list) else value


def _chw(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, 0)))


def _hwc(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


# --- reports of a denoising -------------------------------------------------------------------------------------------


def report_outputs(raws: Sequence[Path], output: Path, output_format: Format) -> list[Path]:
    """Writes what denoising changed beside each of its outputs: STEM.report.json and STEM.report.png.

    output   holds the outputs as `denoise_files` calls them; a raw without one gets no report
    returns  the JSON files
    raises   RawFileError, ImageFileError for a file that meanwhile cannot be read
    """
    written = []
    for raw in raws:
        made = output / f"{raw.stem}{ENCODERS[output_format].suffix}"
        if made.exists():
            comparison, picture = compare_files(raw, made)
            written.append(write_comparison(comparison, picture, output / f"{raw.stem}.report"))
    return written


def write_comparison(comparison: Comparison, picture: np.ndarray, path: Path) -> Path:
    """Writes PATH.json and PATH.png, each whole or not at all. Returns the first."""
    page = path.with_name(f"{path.name}.json")
    write_png(path.with_name(f"{path.name}.png"), picture)
    with whole_file(page) as temporary:
        temporary.write_text(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return page
