"""A sweep as one page: what was best, the front, what mattered, how each trial learned. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from upath import UPath

from library.files.places import read_text
from library.sealed import library_versions
from workloads.charts import AXIS, INK, SERIES, new_axes, themed_svg
from workloads.sweeps.results import Results, TrialResult, shown
from workloads.templates import write_page

_ACCENT, _OTHER, _STOPPED = SERIES[0], AXIS, SERIES[1]
_MOST_CURVES = 60


def write_sweep_page(results: Results) -> UPath:
    """Write `report.html` of a sweep, whole or not at all, and return its path."""
    metrics = list(results.metrics)
    ended = sum(trial.status != "running" for trial in results.trials)
    columns = ["trial", *results.keys, *(f"{name} ({mode})" for name, mode in results.metrics.items()), "step", ""]
    return write_page(
        results.folder / "report.html",
        "sweep.html.j2",
        title=results.config["name"],
        summary=_summary(results, ended),
        tiles=[
            *((f"Best {name}", shown(best.metrics[name]), f"trial {best.index}") for name, best in _bests(results)),
            ("Trials", str(ended), f"of {len(results.trials)}"),
            ("Stopped early", str(sum(trial.status == "stopped" for trial in results.trials)), ""),
            ("Failed", str(sum(trial.status == "failed" for trial in results.trials)), ""),
        ],
        fronts=[_front(results, metrics[0], other) for other in metrics[1:]] if results.measured else [],
        curves=[_curves(results, name) for name in metrics if results.measured],
        parallel=_parallel(results) if len(results.measured) > 1 else None,
        slices=[_slice(results, key, name) for name in metrics for key in results.keys if len(results.measured) > 1],
        importance=[chart for name in metrics if (chart := _importance(results, name))],
        columns=columns,
        rows=[_row(results, trial) for trial in results.trials],
        failures=[(trial.index, trial.error) for trial in results.trials if trial.error],
        promote=f"stillgrain promote {results.folder} --best {metrics[0]}",
        facts=[
            ("Searcher", yaml.safe_dump(results.config["searcher"], default_flow_style=True).strip()),
            ("Scheduler", yaml.safe_dump(results.config["scheduler"], default_flow_style=True).partition("\n")[0]),
            ("Base", results.config["base"]),
            ("Seed", str(results.config["seed"])),
            ("Versions", ", ".join(f"{name} {version}" for name, version in library_versions().items())),
        ],
        config=read_text(results.folder / "sweep.yaml"),
        base=read_text(results.folder / "base.yaml"),
    )


def _bests(results: Results) -> list[tuple[str, TrialResult]]:
    return [(name, results.best(name)) for name in results.metrics] if results.measured else []


def _summary(results: Results, ended: int) -> str:
    keys = ", ".join(results.keys)
    front = (
        f" The Pareto front of {', '.join(results.metrics)} has {len(results.front)} trials."
        if _has_front(results)
        else ""
    )
    open_trials = len(results.trials) - ended
    unfinished = f" {open_trials} have not ended: run it again to go on." if open_trials else ""
    return f"{len(results.trials)} trials of {keys}. {results.verdict().capitalize()}.{front}{unfinished}"


def _has_front(results: Results) -> bool:
    return len(results.metrics) > 1 and bool(results.measured)


def _row(results: Results, trial: TrialResult) -> dict[str, Any]:
    best = {name: found.index for name, found in _bests(results)}
    status = {"done": "", "stopped": "stopped early", "running": "unfinished", "failed": "failed"}[trial.status]
    on_front = _has_front(results) and trial.index in {one.index for one in results.front}
    return {
        "ours": trial.index in best.values(),
        "cells": [
            (str(trial.index), trial.index, False),
            *((shown(trial.overrides.get(key)), trial.overrides.get(key), False) for key in results.keys),
            *(
                (shown(trial.metrics.get(name)), trial.metrics.get(name), trial.index == best.get(name))
                for name in results.metrics
            ),
            (str(trial.step or ""), trial.step, False),
            ("on the front" if on_front and not status else status, status, False),
        ],
    }


# --- charts -----------------------------------------------------------------------------------------------------------


def _front(results: Results, x: str, y: str) -> dict[str, str]:
    axes = new_axes(_named(results, y))
    axes.set_xlabel(_named(results, x), color=INK)
    front = {trial.index for trial in results.front}
    for trial in results.measured:
        is_front = trial.index in front
        point = (trial.metrics[x], trial.metrics[y])
        axes.plot(*point, "o", color=_ACCENT if is_front else _OTHER, markersize=6 if is_front else 4.5)
        axes.annotate(str(trial.index), point, (5, 4), textcoords="offset points", color=INK, fontsize=8.5)
    line = [(t.metrics[x], t.metrics[y]) for t in sorted(results.front, key=lambda t: t.metrics[x])]
    axes.plot(*zip(*line, strict=True), color=_ACCENT, linewidth=1.2, zorder=0)
    axes.margins(0.1)
    note = f"{y} against {x}, the weights each trial published; the numbers are trials, the line is the Pareto front."
    return {"chart": themed_svg(axes, f"Pareto front of {y} against {x}"), "note": note}


def _curves(results: Results, metric: str) -> dict[str, str]:
    axes, best = new_axes(metric), results.best(metric).index
    shown_trials = [t for t in results.trials if metric in t.run.series][-_MOST_CURVES:]
    for trial in shown_trials:
        points = trial.run.series[metric]
        is_best = trial.index == best
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=_ACCENT if is_best else _STOPPED if trial.status == "stopped" else _OTHER,
            linewidth=2 if is_best else 1,
            marker="o" if len(points) < 8 else None,
            markersize=3,
            zorder=3 if is_best else 1,
        )
    values = np.array([value for trial in shown_trials for _, value in trial.run.series[metric]])
    if len(values) > 8:  # a first value far off would flatten all that comes later
        low, high = np.quantile(values, [0.05, 0.95])
        spare = 0.35 * (high - low)
        if spare > 0:
            axes.set_ylim(max(values.min(), low - spare), min(values.max(), high + spare) + 0.03 * spare)
    note = f"{metric} of every trial; the best one, {best}, is drawn thick, those stopped early in orange."
    return {"chart": themed_svg(axes, f"Learning curves of {metric}"), "note": note}


def _slice(results: Results, key: str, metric: str) -> dict[str, str]:
    axes = new_axes(_named(results, metric))
    axes.set_xlabel(key, color=INK)
    told = [trial for trial in results.measured if key in trial.overrides]
    values = [trial.overrides[key] for trial in told]
    places, labels = _places(values, is_log=_is_log(results, key))
    axes.plot(places, [trial.metrics[metric] for trial in told], "o", color=_ACCENT, markersize=5, alpha=0.8)
    _label(axes, labels, is_log=_is_log(results, key))
    return {"chart": themed_svg(axes, f"{metric} against {key}"), "note": f"{metric} against {key}"}


def _parallel(results: Results) -> dict[str, str]:
    """Every trial as a line through its values; the better by the first metric, the stronger."""
    first = next(iter(results.metrics))
    names = [*results.keys, *results.metrics]
    figure = Figure(figsize=(max(6.0, 1.9 * len(names)), 3.8), layout="constrained")
    axes = figure.add_subplot()
    told = sorted(results.measured, key=lambda trial: trial.metrics[first])
    heights: dict[str, dict[int, float]] = {}
    for position, name in enumerate(names):
        given = {t.index: t.overrides.get(name) if name in results.keys else t.metrics[name] for t in told}
        given = {index: value for index, value in given.items() if value is not None}
        is_log = name in results.keys and _is_log(results, name)
        places, labels = _places(list(given.values()), is_log=is_log)
        scale = np.log(places) if is_log else np.asarray(places, float)
        low, span = scale.min(), float(np.ptp(scale)) or 1.0
        heights[name] = {index: float((value - low) / span) for index, value in zip(given, scale, strict=True)}
        axes.axvline(position, color=AXIS, linewidth=0.8)
        ticks = labels or {low: shown(min(given.values())), low + span: shown(max(given.values()))}  # pyright: ignore
        for place, text in ticks.items():
            axes.annotate(
                text,
                (position, (place - low) / span),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
    ranks = {trial.index: rank / max(1, len(told) - 1) for rank, trial in enumerate(told)}
    if results.metrics[first] == "min":
        ranks = {index: 1 - rank for index, rank in ranks.items()}
    for trial in told:
        points = [(x, heights[name].get(trial.index)) for x, name in enumerate(names)]
        line = [(x, y) for x, y in points if y is not None]
        rank = ranks[trial.index]
        axes.plot(
            *zip(*line, strict=True), color=_ACCENT, linewidth=1 + 1.6 * rank, alpha=0.2 + 0.75 * rank, zorder=2 + rank
        )
    axes.set_xticks(range(len(names)), names, fontsize=9, color=INK)
    axes.set_yticks([])
    axes.set_xlim(-0.15, len(names) - 0.55)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return {
        "chart": themed_svg(axes, "Parallel coordinates of all trials"),
        "note": f"A line a trial, through what it was given and what came of it; the stronger, the better its {first}.",
    }


def _importance(results: Results, metric: str) -> dict[str, str] | None:
    found = results.importance(metric)
    if not found:
        return None
    axes = new_axes("")
    keys = list(reversed(found))
    axes.barh(keys, [found[key] for key in keys], color=_ACCENT, height=0.5)
    axes.set_xlabel(f"share of what makes {metric} good", color=INK)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1)
    few = "; so few trials make it a hint" if len(results.measured) < 30 else ""
    note = f"Which key separates the best quarter of {len(results.measured)} trials from the others (PED-ANOVA){few}."
    return {"chart": themed_svg(axes, f"Importance of each key for {metric}"), "note": note}


def _named(results: Results, metric: str) -> str:
    better = {"max": "higher", "min": "lower"}[results.metrics[metric]]
    return f"{metric} ({better} is better)"


def _is_log(results: Results, key: str) -> bool:
    axis = results.space[key]
    values = axis.listed or axis.choice
    if values is None:
        return axis.loguniform is not None
    # A list of numbers that grow by a factor is meant so.
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) >= 10 * min(numbers)


def _places(values: Sequence[Any], *, is_log: bool) -> tuple[list[float], dict[float, str]]:
    """Where values lie on an axis: numbers at themselves; others side by side, with their names."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], {}
    order = {text: float(place) for place, text in enumerate(sorted({shown(value) for value in values}))}
    return [order[shown(value)] for value in values], {place: text for text, place in order.items()}


def _label(axes: Axes, labels: dict[float, str], *, is_log: bool) -> None:
    if labels:
        axes.set_xticks(list(labels), list(labels.values()))
        axes.margins(x=0.2)
    elif is_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
