"""Charts on pages: values over optimizer updates or over rate, all of one look, as SVG inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, AXIS, _GRID = "#1f2428", "#8b949a", "#d5d9dc"
_MOST_MARKED = 30


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


def add_line(axes: Axes, points: Sequence[tuple[int, float]], label: str, *, color: str, linestyle: str = "-") -> None:
    """A line through values at their steps; where they are few, each is marked."""
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


def data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
