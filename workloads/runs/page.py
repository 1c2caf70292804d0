"""A comparison of runs as one page that can be mailed: the tables, and their curves in one chart for each value."""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from library.files.places import place
from workloads.charts import add_legend, add_line, new_axes, svg
from workloads.runs.compare import Comparison
from workloads.runs.show import steps_done
from workloads.templates import write_page

# Told apart by the colour-blind as well: Okabe and Ito 2008.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_LINESTYLES = ("-", "--", ":")


def write_comparison(comparison: Comparison, output: str | Path) -> UPath:
    """The comparison with curves as one page that fetches nothing, written whole or not at all. Returns its path."""
    names = dict.fromkeys(name for run in comparison.runs for name in run.series)
    shown = [name for name in names if name == "train/loss" or name.startswith("val/")]
    return write_page(
        place(output),
        "compare.html.j2",
        title=" / ".join(comparison.labels),
        labels=comparison.labels,
        statuses=[f"{run.status}, {steps_done(run)} steps" for run in comparison.runs],
        charts=[{"name": name, "source": _chart(name, comparison)} for name in shown],
        rows=comparison.rows,
        settings=comparison.settings,
    )


def _chart(name: str, comparison: Comparison) -> str:
    """A line a run, as a data URI."""
    axes = new_axes(name)
    for number, (label, run) in enumerate(zip(comparison.labels, comparison.runs, strict=True)):
        points = run.series.get(name, [])
        add_line(
            axes,
            points,
            label if points else f"{label}: none",
            color=_COLORS[number % len(_COLORS)],
            linestyle=_LINESTYLES[number // len(_COLORS) % len(_LINESTYLES)],
        )
    axes.set_xlim(left=0)
    add_legend(axes)
    return svg(axes)
