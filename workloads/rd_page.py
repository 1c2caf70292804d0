"""Rate-distortion curves as pictures and files: PNG, CSV, JSON that CompressAI draws, and a table of BD-rates."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from library.errors import ConfigError
from library.files.atomic import whole_file
from library.rate_distortion import BdRate, RateCurve, bd_rate, best_part, decibels, to_compressai_json, write_csv
from workloads.charts import AXIS, INK

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
    levels: Mapping[str, float] = MappingProxyType({}),
    overlap: tuple[float, float] | None = None,
    rate: str = FILE_BYTES,
) -> bytes:
    """A chart of quality over rate, in log rate, each line named at its end. 1800 x 1120 px, for a width of 900.

    curves   points of infinite dB are left out, and with them a curve that has no others
    ours     names of the curves that are drawn thick
    label    the metric as people call it, with its domain: "PSNR, developed". MS-SSIM is drawn in dB
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
            linestyle=linestyle,
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
        axes.text(0.012, overlap[0], "BD-rate is over this range", transform=axes.get_yaxis_transform(), color=INK,
                  fontsize=8.5, va="bottom")  # fmt: skip
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
