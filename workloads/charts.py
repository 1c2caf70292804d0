"""Charts and pictures on pages. Charts are of values over optimizer updates, over rate or over noise, or of means with
their intervals, all of one look, as SVG inside the page."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from upath import UPath

INK, AXIS, _GRID = "#1f2428", "#8b949a", "#d5d9dc"
SERIES = ("#1c6570", "#b5651d", "#6a3d8a", "#2f7d32", "#a3486a", "#4a6fb0", "#7c7a2c", "#8a5a44")
"""Colours of things that are compared; on pages with a dark look the style sheet gives each another."""
_THEME = {INK: "--ink", AXIS: "--axis", _GRID: "--line"} | {color: f"--s{i}" for i, color in enumerate(SERIES)}
_MOST_MARKED = 30
_LARGEST_PICTURE = 256


def new_axes(label: str) -> Axes:
    """An empty chart.

    label  of the y axis, with its unit
    """
    axes = Figure(figsize=(4.6, 3.1), layout="constrained").add_subplot()
    axes.set_xlabel("step (optimizer updates)", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.tick_params(colors=INK, labelsize=9, length=3, width=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(AXIS)
    return axes


def add_line(
    axes: Axes, points: Sequence[tuple[float, float]], label: str, *, color: str, linestyle: str = "-"
) -> None:
    """A line through values at their steps, or whatever the x axis is of; where they are few, each is marked."""
    axes.plot(
        [step for step, _ in points],
        [value for _, value in points],
        color=color,
        linestyle=linestyle,
        linewidth=1.6,
        marker="o" if len(points) < _MOST_MARKED else None,
        markersize=3,
        label=label,
    )


def add_rate_curve(axes: Axes, points: Mapping[str, tuple[float, float]], *, color: str) -> None:
    """A line of quality over rate, the rate in its logarithm, each point with its name. The x axis becomes the rate.

    points  bpp above 0 and a finite value by name, in the order in which the line runs
    """
    rates, values = zip(*points.values(), strict=True)
    axes.plot(rates, values, color=color, linewidth=1.6, marker="o", markersize=4)
    for name, point in points.items():
        # To the lower right: a curve that rises leaves that side free.
        axes.annotate(name, point, (5, -5), textcoords="offset points", color=INK, fontsize=9, va="top")
    axes.set_xlabel("rate (bpp, log scale)", color=INK)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.margins(x=0.12, y=0.14)


def add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def svg(axes: Axes) -> str:
    """The chart as a data URI: the same text for the same values."""
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes of new_axes have a figure"
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "stillgrain"}):  # or each page would name its paths anew, at random
        figure.savefig(content, format="svg", metadata={"Date": None})
    return data_uri("image/svg+xml", content.getvalue())


def themed_svg(axes: Axes, label: str) -> str:
    """The chart as markup for a page, in the page's own colours: `--ink`, `--axis`, `--line`, and `--s0` to `--s7`
    of `SERIES`. The same text for the same values.

    label  what it shows, for who cannot see it
    """
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes of new_axes have a figure"
    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "stillgrain"}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue()[content.getvalue().index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)  # which names addresses
    head, rest = text.split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    # Names are the page's, and charts have the same.
    mark = hashlib.sha256((label + rest).encode()).hexdigest()[:8]
    rest = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>c{mark}-", rest)
    for color, variable in _THEME.items():
        rest = rest.replace(color, f"var({variable})")
    return f'<svg {box} role="img" aria-label="{html.escape(label)}">{rest}'


def means_axes(label: str, rows: Sequence[tuple[str, float, float | None, float | None, str]]) -> Axes:
    """A chart of means with whiskers, the first on top.

    label  of the x axis, with its unit
    rows   name, mean, lower and upper end of its interval (None for none), colour of `SERIES`
    """
    axes = new_axes("")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(4.6, 0.75 + 0.27 * len(rows))
    for place, (_, mean, low, high, color) in enumerate(rows):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=color, linewidth=1.8, solid_capstyle="butt")
            axes.plot([low, high], [place, place], color=color, linestyle="", marker="|", markersize=7)
        axes.plot([mean], [place], color=color, marker="o", markersize=5)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label, color=INK)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    return axes


def png_picture(path: Path | UPath, role: str, label: str, note: str = "") -> dict[str, str]:
    """A PNG for a page, cut to its centre when it is larger than what shows at full size: source, role, label, note."""
    with path.open("rb") as file, Image.open(file) as image:
        width, height = image.size
        side_x, side_y = min(width, _LARGEST_PICTURE), min(height, _LARGEST_PICTURE)
        left, top = (width - side_x) // 2, (height - side_y) // 2
        content = io.BytesIO()
        image.crop((left, top, left + side_x, top + side_y)).save(content, format="PNG", optimize=True)
    return {"source": data_uri("image/png", content.getvalue()), "role": role, "label": label, "note": note}


def data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
