"""Rate-distortion curves as pictures and files: PNG, CSV, JSON that CompressAI draws; and all of them on one page."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from upath import UPath

from library.errors import ConfigError
from library.files.atomic import whole_file
from library.rate_distortion import BdRate, RateCurve, bd_rate, best_part, decibels, to_compressai_json, write_csv
from workloads.charts import AXIS, INK, data_uri
from workloads.rd_methods import DENOISED, DENOISED_JPEG_XL, NOISY_JPEG_XL
from workloads.rd_results import Comparison
from workloads.rd_scenes import PICTURES
from workloads.templates import write_page

FILE_BYTES = "bits of the file per photosite"
_OURS = ("#1c6570", "#b5651d", "#6a3d8a", "#2f7d32")
# Thin lines and their names: dark enough to be read as text, apart in hue, none like the colours of ours.
_BASELINES = ("#6b7280", "#a3486a", "#4a6fb0", "#7c7a2c", "#8a5a44", "#3f8f8a", "#9b59b6", "#555555")
_GRID = "#e1e4e7"
_WIDTH, _HEIGHT, _DPI = 9.0, 5.6, 200  # twice the pixels of a page 900 px wide, for screens that have them
_LEFT, _BOTTOM, _TOP = 0.085, 0.115, 0.965
"""Of the figure: where the chart lies; how far to the right, the longest name decides."""
_FONT_SIZE, _LINE_HEIGHT = 10.0, 1.55
"""Of names beside lines: points, and the least distance between two in font sizes."""


def curves_png(
    curves: Sequence[RateCurve],
    metric: str,
    *,
    ours: Collection[str],
    label: str,
    dashed: Collection[str] = (),
    levels: Mapping[str, float] = MappingProxyType({}),
    overlap: tuple[float, float] | None = None,
    rate: str = FILE_BYTES,
) -> bytes:
    """A chart of quality over rate, in log rate, each line named at its end. 1800 x 1120 px, for a width of 900.

    curves   points of infinite dB are left out, and with them a curve that has no others
    ours     names of the curves that are drawn thick
    label    the metric as people call it, with its domain: "PSNR, developed". MS-SSIM is drawn in dB
    dashed   names of curves that were not measured here
    levels   by name, what takes no bytes to compare with, of the metric as it is measured: the noisy input
    overlap  from, to, in dB: what a BD-rate speaks of, shaded
    raises   ConfigError when nothing is left to draw, DataError when a curve lacks the metric
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.add_axes((_LEFT, _BOTTOM, 0.6, _TOP - _BOTTOM))
    names: list[_Name] = []
    looks = {
        True: itertools.product(("-",) * len(curves), _OURS),
        False: itertools.product(("-", "--", ":") * len(curves), _BASELINES),
    }
    for curve in sorted(curves, key=lambda c: c.name in ours):  # ours lie on top
        is_ours = curve.name in ours
        quality = decibels(metric, curve.values(metric))
        drawn = np.isfinite(quality)
        if not drawn.any():
            continue
        rates, quality = np.array(curve.bpp)[drawn], quality[drawn]
        linestyle, color = next(looks[is_ours])
        axes.plot(
            rates,
            quality,
            color=color,
            linestyle="--" if curve.name in dashed else linestyle,
            linewidth=3.0 if is_ours else 1.2,
            marker="o",
            markersize=6.0 if is_ours else 3.2,
            solid_capstyle="round",
        )
        names.append(_Name(curve.name, float(rates[-1]), float(quality[-1]), color, is_ours))
    if not names:
        raise ConfigError(f"no curve has a point with a finite {metric}: there is nothing to draw")
    for name, level in levels.items():
        height = float(decibels(metric, level))
        axes.axhline(height, color=AXIS, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
        names.append(_Name(name, None, height, INK, False))
    if overlap:
        axes.axhspan(*overlap, color=_OURS[0], alpha=0.06, linewidth=0, zorder=0)
        on_white = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        axes.text(0.012, overlap[1], "BD-rate is over this range", transform=axes.get_yaxis_transform(), color=INK,
                  fontsize=8.5, va="top", bbox=on_white)  # fmt: skip
    _style(axes, label, metric, rate)
    _name_lines(axes, names)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI, metadata={"Software": None})
    return content.getvalue()


class _Name(NamedTuple):
    """What stands beside a line, and where the line ends: None for one that runs across."""

    text: str
    rate: float | None
    quality: float
    color: str
    is_ours: bool


def _style(axes: Axes, label: str, metric: str, rate: str) -> None:
    in_decibels = "dB" if metric.rpartition("/")[2].startswith("psnr") else "dB: −10 log10(1 − x)"
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{rate} (bpp, log scale)", color=INK, fontsize=10.5)
    axes.set_ylabel(f"{label} ({in_decibels})", color=INK, fontsize=10.5)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9.5, length=3, width=0.6, which="major")
    axes.tick_params(length=0, which="minor")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS)


def _name_lines(axes: Axes, names: Sequence[_Name]) -> None:
    """Each name right of the chart, near the height at which its line ends, with a hair to the end."""
    height = _HEIGHT * (_TOP - _BOTTOM) * 72
    size = min(_FONT_SIZE, height / (_LINE_HEIGHT * len(names)))
    figure, [left, right], [low, high] = axes.figure, axes.get_xlim(), axes.get_ylim()
    ends = sorted(names, key=lambda name: name.quality)
    places = _spread([(name.quality - low) / (high - low) for name in ends], _LINE_HEIGHT * size / height)
    texts = [
        axes.text(1, place, name.text, transform=axes.transAxes, color=name.color, fontsize=size,
                  weight="bold" if name.is_ours else "normal", va="center")
        for name, place in zip(ends, places, strict=True)
    ]  # fmt: skip
    inches = max(text.get_window_extent().width for text in texts) / figure.dpi
    width = max(0.4, 1 - _LEFT - inches / _WIDTH - 0.045)
    axes.set_position((_LEFT, _BOTTOM, width, _TOP - _BOTTOM))
    for name, place, text in zip(ends, places, texts, strict=True):
        text.set_x(1 + 0.03 / width)
        end = 1.0 if name.rate is None else float(np.log(name.rate / left) / np.log(right / left))
        level = (name.quality - low) / (high - low)
        axes.plot(
            [min(end + 0.008, 1.0), 1.0, 1 + 0.025 / width], [level, level, place],
            transform=axes.transAxes, color=name.color, linewidth=0.6, alpha=0.45, clip_on=False, zorder=1,
        )  # fmt: skip


def _spread(wanted: Sequence[float], distance: float) -> list[float]:
    """The places in 0 ... 1 nearest to the wanted ones, in their order, that lie at least `distance` apart.

    wanted   rising, few enough to have room
    returns  rising, with the least sum of squared shifts: isotonic regression by pooling (Barlow and others 1972)
    """
    groups: list[tuple[float, int]] = []  # mean of what is left when the distances are taken off, and how many
    for index, place in enumerate(wanted):
        mean, count = place - index * distance, 1
        while groups and groups[-1][0] > mean:
            other, others = groups.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        groups.append((mean, count))
    last = 1 - (len(wanted) - 1) * distance
    level = [min(max(mean, 0.0), last) for mean, count in groups for _ in range(count)]
    return [place + index * distance for index, place in enumerate(level)]


def bd_table(curves: Sequence[RateCurve], tests: Collection[str], metric: str) -> dict[tuple[str, str], BdRate]:
    """BD-rate of each test against every other curve as its anchor: of the best parts of both, since a codec that is
    given noise gets worse again.

    tests    names of curves
    returns  by names of anchor and test
    """
    parts = [best_part(curve, metric) for curve in curves]
    return {
        (anchor.name, test.name): bd_rate(anchor, test, metric)
        for test in parts
        if test.name in tests
        for anchor in parts
        if anchor.name not in tests
    }


def write_curves(
    folder: str | Path,
    curves: Sequence[RateCurve],
    *,
    ours: Collection[str],
    labels: Mapping[str, str],
    levels: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    rate: str = FILE_BYTES,
) -> list[Path]:
    """Each file whole or not at all: `curves.csv`, `<metric>.png` and `curves/<name>.json`. Returns their paths.

    labels  by metric, what people call it; only these are drawn
    levels  by metric, as of `curves_png`
    raises  ConfigError for names that differ in nothing a file name can hold; as `curves_png`
    """
    folder = Path(folder)
    files = {curve.name: re.sub(r"[^A-Za-z0-9.+-]+", "-", curve.name).strip("-.") for curve in curves}
    if len(set(files.values())) < len(curves):
        raise ConfigError(f"two curves would be one file of {', '.join(sorted(files.values()))}: name them apart")
    write_csv(folder / "curves.csv", curves)
    written = [folder / "curves.csv"]
    for metric, label in labels.items():
        picture = curves_png(curves, metric, ours=ours, label=label, levels=levels.get(metric, {}), rate=rate)
        with whole_file(folder / f"{metric}.png") as temporary:
            temporary.write_bytes(picture)
        written.append(folder / f"{metric}.png")
    for curve in curves:
        path = folder / "curves" / f"{files[curve.name]}.json"
        with whole_file(path) as temporary:
            temporary.write_text(
                json.dumps(to_compressai_json(curve), indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        written.append(path)
    return written


# --- the page ---------------------------------------------------------------------------------------------------------

_KEY_BASELINES = (NOISY_JPEG_XL, DENOISED_JPEG_XL, "JPEG XL planes")
_KEY_PICTURE_BASELINES = (NOISY_JPEG_XL, "JPEG 2000", "AVIF 12-bit")
"""What is drawn beside ours where all would be too many: of raws, and of pictures."""
_PUBLISHED = ", published"
_PUBLISHED_SHOWN = (
    "vtm",
    "compressai cheng2020-anchor [mse]",
    "compressai mbt2018-mean [mse]",
    "compressai bmshj2018-hyperprior [mse]",
    "compressai bmshj2018-factorized [mse]",
)
"""Of published curves, where there are so many. Networks were trained for mean squared error, as ours are."""


def write_rd_page(
    folder: str | Path,
    found: Comparison,
    pictures: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    kodak: Sequence[RateCurve],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
) -> Path:
    """`rate_distortion.html`, whole or not at all: all pictures are inside it. Returns its path.

    pictures  by image: file, label, bpp, ms_ssim and psnr of each PNG in `<folder>/pictures/<image>/`
    kodak     published curves to be drawn beside ours
    config    as it ran
    """
    folder = Path(folder)
    page = folder / "rate_distortion.html"
    codecs = [codec for codec in found.ours if codec in found.means]
    fidelity = [m for m in found.means if m in found.noise_kept or m.endswith(" planes")]
    fidelity = fidelity if found.kind is not PICTURES else []
    all_lossy, metrics = [*codecs, *found.anchors], found.kind.metrics
    denoised_first = [DENOISED + codec for codec in codecs]
    key = [*codecs, *denoised_first, *(_KEY_PICTURE_BASELINES if found.kind is PICTURES else _KEY_BASELINES)]
    write_page(
        UPath(page),
        "rate_distortion.html.j2",
        title=folder.name,
        summary=_summary(found, config),
        targets=[(str(target), target.is_met) for target in found.targets],
        kind=found.kind,
        is_of_raws=found.kind is not PICTURES,
        headings=[metrics["ms_ssim"], metrics["psnr"]],
        headline=[_headline(found, metric, key) for metric in _HEADLINE],
        shaded=f"{found.ours[0]} against {NOISY_JPEG_XL}" if any(_shaded(found, m) for m in _HEADLINE) else None,
        rates=[(codec, _rate_rows(found, codec, found.anchors, _HEADLINE)) for codec in codecs],
        saved=[(codec, *_saved(found, codec)) for codec in codecs],
        sheets=[_sheet(folder, image, found, about) for image, about in pictures.items()],
        charts=[_chart(found, metric, all_lossy) for metric in metrics if not metric.endswith("_to_noisy")],
        fidelity=[_chart(found, metric, fidelity) for metric in _FIDELITY] if fidelity else [],
        fidelity_headings=[metrics[metric] for metric in _FIDELITY] if fidelity else [],
        kept=[
            (codec, _rate_rows(found, codec, [m for m in fidelity if m not in found.noise_kept], _FIDELITY))
            for codec in found.noise_kept
            if fidelity
        ],
        lossless=_lossless(found),
        speeds=_speeds(found, all_lossy),
        per_image=[_of_image(found, image, key) for image in found.images],
        kodak=_kodak(found, kodak, key),
        problems=list(found.problems.items()),
        failures=list(found.failures.items()),
        methods=[(name, found.descriptions[name]) for name in found.means],
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        config=json.dumps(config, indent=1),
    )
    return page


_HEADLINE = ("ms_ssim", "psnr")
_FIDELITY = ("psnr.stabilized_to_noisy", "psnr.developed_to_noisy")


def _summary(found: Comparison, config: Mapping[str, Any]) -> str:
    images = found.kind.counted(len(found.images))
    crop = (
        "whole" if config["crop"] == "whole" else f"their centre {config['crop']} x {config['crop']} {found.kind.site}s"
    )
    if found.kind is PICTURES:
        return f"{images} for display, each its own truth, {crop}; {len(found.means)} methods."
    isos = sorted({found.facts(image).iso or 0 for image in found.images})
    light = (
        f"ISO {isos[0]:g}" + (f" to {isos[-1]:g}" if isos[-1] > isos[0] else "") if isos and isos[0] else "ISO unknown"
    )
    return f"{images} of known truth, {light}, {crop}; {len(found.means)} methods."


def _headline(found: Comparison, metric: str, names: Sequence[str]) -> dict[str, str]:
    """A chart of mean curves, with what is compared between the first of ours and JPEG XL shaded."""
    return _chart(found, metric, names, _shaded(found, metric))


def _shaded(found: Comparison, metric: str) -> tuple[float, float] | None:
    if found.ours[0] not in found.means or NOISY_JPEG_XL not in found.means:
        return None
    return found.rate_of_means(NOISY_JPEG_XL, found.ours[0], metric).overlap


def _chart(
    found: Comparison, metric: str, names: Sequence[str], overlap: tuple[float, float] | None = None
) -> dict[str, str]:
    """A chart of those mean curves that there are."""
    drawn = [found.means[name] for name in names if name in found.means]
    ours = {*found.ours, *found.noise_kept}
    label, levels = found.kind.metrics[metric], found.levels(metric)
    content = curves_png(drawn, metric, ours=ours, label=label, levels=levels, overlap=overlap, rate=_rate(found))
    return {"source": data_uri("image/png", content), "label": label}


def _rate(found: Comparison) -> str:
    return f"bits of the file per {found.kind.site}"


def _rate_rows(
    found: Comparison, codec: str, anchors: Sequence[str], metrics: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """By anchor, for each metric: the mean of the images' BD-rates; that of the mean curves, and over what."""
    return [(anchor, [_rate_cell(found, anchor, codec, metric) for metric in metrics]) for anchor in anchors]


def _rate_cell(found: Comparison, anchor: str, codec: str, metric: str) -> tuple[str, str]:
    mean = found.rate_per_image(anchor, codec, metric, found.images)
    whole = found.rate_of_means(anchor, codec, metric)
    counted = sum(result.percent is not None for result in mean.per_image)
    text = _percent(mean.percent)
    if mean.percent is not None and counted < len(mean.per_image):
        text += f" ({counted} of {len(mean.per_image)} {found.kind.image}s)"
    if whole.percent is None:
        return text, f"mean curves: {whole.reason}"
    return text, f"mean curves {_percent(whole.percent)}, {_range(whole)}"


def _range(rate: BdRate) -> str:
    assert rate.overlap is not None, "it has a number"
    low, high = rate.overlap
    return f"{low:.1f} … {high:.1f} dB, {rate.share:.0%} of the shorter"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:+.1f} %".replace("-", "\N{MINUS SIGN}")


def _saved(found: Comparison, codec: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Anchors; and by level of MS-SSIM, how many percent fewer bytes than each."""
    rows = found.saved_at_levels(codec)
    anchors = list(next(iter(rows.values()))) if rows else []
    return anchors, [
        (f"{level:g}", ["–" if row[a] is None else _percent(-float(row[a] or 0)) for a in anchors])
        for level, row in rows.items()
    ]


def _sheet(folder: Path, image: str, found: Comparison, about: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pictures = []
    for picture in about:
        content = (folder / "pictures" / image / picture["file"]).read_bytes()
        facts = [f"{picture['bpp']:.3f} bpp"] if picture["bpp"] else []
        if picture["ms_ssim"] is not None:
            facts += [f"MS-SSIM {picture['ms_ssim']:.4f}", f"{picture['psnr']:.2f} dB"]
        pictures.append(
            {"source": data_uri("image/png", content), "label": picture["label"], "note": " · ".join(facts)}
        )
    return {"name": image, "note": _camera(found, image), "pictures": pictures}


def _camera(found: Comparison, image: str) -> str:
    facts = found.facts(image)
    iso = f", ISO {facts.iso:g}" if facts.iso else ""
    return f"{facts.camera}{iso}"


def _of_image(found: Comparison, image: str, names: Sequence[str]) -> dict[str, str]:
    curves = found.curves_of(image)
    drawn = [curves[name] for name in names if name in curves]
    label, levels = found.kind.metrics["ms_ssim"], found.levels("ms_ssim", image)
    content = curves_png(drawn, "ms_ssim", ours=found.ours, label=label, levels=levels, rate=_rate(found))
    return {"source": data_uri("image/png", content), "label": image, "note": _camera(found, image)}


def _lossless(found: Comparison) -> list[tuple[str, str, str, str]]:
    """Name, bits per photosite, photosites per second of both ways, in millions."""
    if found.kind is PICTURES:
        return []
    return [
        (name, f"{curve.points[0].bpp:.3f}", *_speed(found, name))
        for name, curve in found.means.items()
        if all(value == np.inf for value in curve.values("psnr.stabilized_to_noisy"))
    ]


def _speeds(found: Comparison, names: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(name, *_speed(found, name)) for name in names]


def _speed(found: Comparison, method: str) -> tuple[str, str]:
    """Megaphotosites per second of encoding and decoding, over all images and settings."""
    measured = [m for m in found.measurements if m.method == method]
    photosites = sum(m.photosites for m in measured) / 1e6
    times = (sum(m.encoding_time for m in measured), sum(m.decoding_time for m in measured))
    encoding, decoding = (f"{photosites / max(seconds, 1e-9):.2f}" for seconds in times)
    return encoding, decoding


def against_published(found: Comparison, published: Sequence[RateCurve], metric: str) -> dict[tuple[str, str], BdRate]:
    """`bd_table` of our mean curves against those published ones that have the metric."""
    codecs = [found.means[codec] for codec in found.ours if codec in found.means]
    anchors = [curve for curve in published if metric in curve.metrics]
    return bd_table([*anchors, *codecs], found.ours, metric)


def _kodak(found: Comparison, published: Sequence[RateCurve], names: Sequence[str]) -> dict[str, Any] | None:
    """Charts and a table of what was measured beside published curves."""
    chosen = [curve for curve in published if curve.name in _PUBLISHED_SHOWN] or published
    if not chosen:
        return None
    lines = [dataclasses.replace(curve, name=_short(curve) + _PUBLISHED) for curve in chosen]
    own = [found.means[name] for name in names if name in found.means]
    charts = []
    for metric in _HEADLINE:
        drawn = [*own, *(line for line in lines if metric in line.metrics)]
        label, dashed = found.kind.metrics[metric], [line.name for line in lines]
        content = curves_png(drawn, metric, ours=found.ours, label=label, dashed=dashed, rate=_rate(found))
        charts.append({"source": data_uri("image/png", content), "label": label})
    rates = [against_published(found, chosen, metric) for metric in _HEADLINE]
    tables = [
        (codec, [(_short(c), [_published_cell(table.get((c.name, codec))) for table in rates]) for c in chosen])
        for codec in found.ours
        if codec in found.means
    ]
    return {"charts": charts, "tables": tables, "label": chosen[0].description}


def _short(curve: RateCurve) -> str:
    """Its name without whose it is and what it was trained for."""
    return curve.name.removeprefix("compressai ").removesuffix(" [mse]")


def _published_cell(rate: BdRate | None) -> tuple[str, str]:
    if rate is None:
        return "", "not published"
    return _percent(rate.percent), rate.reason if rate.percent is None else _range(rate)
