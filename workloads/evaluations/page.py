"""An evaluation as one page that can be mailed: what it comes to, tables that sort, curves, pictures, provenance.

<output>/evaluation.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from workloads.charts import INK, SERIES, add_line, means_axes, new_axes, png_picture, themed_svg
from workloads.evaluations.methods import ALIGNED_DOMAIN, DOMAINS, MASK, METRICS, NOISY, PICTURE_DOMAINS
from workloads.evaluations.results import Evaluation, Mean, SuiteResult, format_interval, format_metric
from workloads.evaluations.statistics import FEWEST_SCENES, is_sure
from workloads.templates import write_page

ABOUT = "about.json"
HEADLINE = ("psnr", "ms_ssim", "psnr.linear")
"""Metrics that are drawn, and stand beside pictures."""
_DASHES = {"noisy": (":", "1.5 3"), "baseline": ("--", "6 3"), "ours": ("-", "")}
"""Lines by role: on a chart, and in its legend."""
_NOISY_COLOR, _BASELINE_COLORS, _OUR_COLORS = SERIES[7], SERIES[3:7], SERIES[:3]


def crops_folder(evaluation: Evaluation, suite: str, number: int) -> Path:
    """Where the pictures of a suite's picked image lie, with `ABOUT` beside them: which is of which method."""
    return evaluation.output / "crops" / suite / str(number)


def write_evaluation_page(evaluation: Evaluation) -> UPath:
    """Write `evaluation.html`, whole or not at all, and return its path."""
    suites = [_suite(evaluation, suite) for suite in evaluation.suites.values()]
    config = evaluation.output / "evaluation.yaml"
    return write_page(
        UPath(evaluation.page),
        "evaluation.html.j2",
        title=f"Evaluation {evaluation.output.name}",
        summary=_summary(evaluation),
        suites=suites,
        domains=_domains(evaluation),
        fewest_scenes=FEWEST_SCENES,
        methods=[(facts.label, facts.description) for facts in evaluation.methods.values()],
        origins=_origins(evaluation),
        provenance=[
            ("Images and truths, by content", f"sha256:{evaluation.data_digest}"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())),
            ("Measured on", "; ".join(evaluation.machines)),
            ("Again", "stillgrain run evaluation.yaml"),
            ("This page", f"stillgrain report {evaluation.output.name}"),
        ],
        config=config.read_text(encoding="utf-8") if config.exists() else json.dumps(evaluation.config, indent=1),
    )


def _summary(evaluation: Evaluation) -> str:
    ours = [facts.label for facts in evaluation.methods.values() if facts.role == "ours"]
    baselines = sum(facts.role == "baseline" for facts in evaluation.methods.values())
    images = sum(len(suite.images) for suite in evaluation.suites.values())
    return (
        f"{_listed(ours) or 'No network'} against the input and {_counted(baselines, 'classical denoiser')}, on "
        f"{_counted(images, 'image')} of {_counted(len(evaluation.suites), 'suite')}."
    )


def _domains(evaluation: Evaluation) -> str:
    developed = {
        name: PICTURE_DOMAINS[suite["of"]["develop"] if suite["kind"] == "clean" else suite["develop"]]
        for name, suite in evaluation.config.get("suites", {}).items()
    }
    texts = [
        f"Picture: developed to be looked at, 8 bits ({how}), of a classical denoiser its best in developed PSNR."
        for how in dict.fromkeys(developed.values())
        if how
    ]
    return " ".join([DOMAINS, ALIGNED_DOMAIN, *texts, MASK])


def _origins(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str]]]]:
    """Label of each bundle -> what is known of where it comes from."""
    found = []
    for facts in evaluation.methods.values():
        if origin := facts.origin:
            versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
            rows = [
                ("Bundle", f"{origin['name']} sha256:{origin['digest']}"),
                ("Trained on", origin["data_digest"]),
                ("Steps", f"{origin['step']:,}"),
                ("Cost", f"{origin['num_parameters']:,} parameters, {origin['macs_per_pixel']:,.0f} MAC a pixel"),
                ("Commit", (origin["git_commit"] or "unknown")[:12]),
                ("Written with", versions),
            ]
            found.append((facts.label, rows))
    return found


# --- what a suite comes to --------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A number in a table."""

    text: str
    note: str = ""
    sort: float | None = None
    is_best: bool = False


def verdict(evaluation: Evaluation, suite: SuiteResult) -> str:
    """What the suite says of the networks, in words."""
    if not suite.images:
        return "No image could be compared."
    if not suite.ours:
        return "No network was measured here."
    label = {name: facts.label for name, facts in evaluation.methods.items()}
    first, *others = suite.ours
    enough = suite.num_scenes >= FEWEST_SCENES

    def compared(one: str, other: str, name: str) -> str:
        """One sentence of the difference in developed PSNR."""
        if (found := suite.differences[one, other].get("psnr")) is None:
            return f"{label[one]} and {name} cannot be told apart by PSNR, which is infinite somewhere."
        turned = found if found.value >= 0 or found.low is None or found.high is None else _negative(found)
        interval = format_interval("psnr", turned)
        doubt = ", which may be chance" if enough and not is_sure(found, suite.num_scenes) else ""
        side = "above" if found.value >= 0 else "below"
        return f"{label[one]} is {abs(found.value):.2f} dB{f' {interval}' if interval else ''} {side} {name}{doubt}."

    sentences = [compared(first, NOISY, "the input in developed PSNR")]
    baselines = [method for method in suite.methods if evaluation.methods[method].role == "baseline"]
    if baselines:
        best = max(baselines, key=lambda method: suite.means[method]["psnr"].value)
        sentences.append(compared(first, best, f"{label[best]}, the best classical denoiser here"))
    sentences += [compared(first, other, label[other]) for other in others]
    if not enough:
        sentences.append(f"Of {_counted(suite.num_scenes, 'scene')} all of this may be chance.")
    return " ".join(sentences)


def _negative(mean: Mean) -> Mean:
    assert mean.low is not None
    assert mean.high is not None
    return Mean(-mean.value, -mean.high, -mean.low)


def rows_of(evaluation: Evaluation, suite: SuiteResult, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """The table of means: label, ours, cells."""
    best = {name: max((means[name].value for means in suite.means.values()), default=0.0) for name in metrics}
    return [
        {
            "label": evaluation.methods[method].label,
            "ours": evaluation.methods[method].role == "ours",
            "cells": [
                Cell(
                    format_metric(name, means[name].value),
                    format_interval(name, means[name]),
                    _sortable(means[name].value),
                    means[name].value == best[name],
                )
                for name in metrics
            ],
        }
        for method, means in suite.means.items()
    ]


def pictures_of(
    evaluation: Evaluation, suite: SuiteResult, number: int
) -> tuple[list[dict[str, str]], list[tuple[int, int]]]:
    """Pictures of a picked image, as `png_picture`, and which of them are to lie under a slider; nothing where they
    were not drawn."""
    folder, picked = crops_folder(evaluation, suite.name, number), suite.picked[number]
    try:
        files: dict[str, str] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["pictures"]
    except OSError:
        return [], []
    shown = []
    for method, file in files.items():
        facts = evaluation.methods.get(method)
        text = f"{facts.label[:1].upper()}{facts.label[1:]}" if facts and facts.role != "ours" else None
        label = text or (facts.label if facts else "Truth")
        note = _numbers(suite.of(method, picked.image).metrics) if facts else ""
        shown.append(png_picture(folder / file, method, label, note))
    roles = [evaluation.methods[method].role if method in evaluation.methods else "truth" for method in files]
    ours = roles.index("ours")
    other = (roles.index("baseline"), ours) if "baseline" in roles else (ours, len(roles) - 1)
    return shown, [(0, ours), other]


def note_of(suite: SuiteResult, image: str) -> str:
    """Camera and ISO of an image, as far as they are known."""
    facts = suite.facts(image)
    return ", ".join([*([facts.camera] if facts.camera else []), *([f"ISO {facts.iso:g}"] if facts.iso else [])])


def _numbers(metrics: Mapping[str, float]) -> str:
    values = [format_metric(name, metrics[name]) for name in HEADLINE]
    return f"{values[0]}\N{NO-BREAK SPACE}dB · {values[1]} · {values[2]}\N{NO-BREAK SPACE}dB"


def _suite(evaluation: Evaluation, suite: SuiteResult) -> dict[str, Any]:
    crop = evaluation.config["crop"]
    area = "whole images" if crop == "whole" else f"their centre {crop} x {crop} pixels"
    aligned = [name for name in suite.metrics if name.endswith(".aligned")]
    plain = [name for name in suite.metrics if name not in aligned]
    colors = _colors(evaluation, suite)
    return {
        "name": suite.name,
        "verdict": verdict(evaluation, suite),
        "what": f"{_counted(len(suite.images), 'image')} of {_counted(suite.num_scenes, 'scene')}, {area}",
        "plain": _tables(evaluation, suite, plain) | {"costs": _costs(suite)},
        "aligned": _tables(evaluation, suite, aligned),
        "charts": _mean_charts(evaluation, suite, colors),
        "curve": _curve_charts(suite, colors),
        "legend": [
            (evaluation.methods[method].label, f"--s{SERIES.index(colors[method])}", _DASHES[suite.roles[method]][1])
            for method in suite.methods
        ],
        "buckets": [(bucket.label, bucket.num_images, f"{bucket.score:.3f}") for bucket in suite.curve],
        "scenes": [_scene(evaluation, suite, number) for number in range(len(suite.picked))],
        "failures": list(suite.failures.items()),
        "skipped": [(evaluation.methods[method].label, reason) for method, reason in suite.skipped.items()],
    }


def _tables(evaluation: Evaluation, suite: SuiteResult, metrics: Sequence[str]) -> dict[str, Any]:
    """Means and differences in some metrics."""
    label = {name: facts.label for name, facts in evaluation.methods.items()}
    return {
        "headings": [METRICS[name] for name in metrics],
        "rows": rows_of(evaluation, suite, metrics),
        "differences": [
            (label[one], label[other], [_difference(name, found.get(name), suite.num_scenes) for name in metrics])
            for (one, other), found in suite.differences.items()
        ],
    }


def _costs(suite: SuiteResult) -> list[tuple[Cell, Cell]]:
    """Speed and memory of each method that has means."""
    costs = []
    for method in suite.means:
        if (speed := suite.speeds.get(method)) is None:
            costs.append((Cell("–"), Cell("–")))
            continue
        rate = Cell(f"{speed.megapixels_per_second:.2f}", f"of {speed.megapixels:.2f} MP", speed.megapixels_per_second)
        memory = Cell("–")
        if speed.memory is not None:
            memory = Cell(f"{speed.memory / 2**20:,.0f}", "", float(speed.memory))
        costs.append((rate, memory))
    return costs


def _difference(name: str, mean: Mean | None, num_scenes: int) -> Cell:
    if mean is None or not math.isfinite(mean.value):
        return Cell("–")
    digits = 4 if name.startswith("ms_ssim") else 2
    return Cell(f"{mean.value:+.{digits}f}", format_interval(name, mean, "+"), mean.value, is_sure(mean, num_scenes))


def _scene(evaluation: Evaluation, suite: SuiteResult, number: int) -> dict[str, Any]:
    picked = suite.picked[number]
    pictures, pairs = pictures_of(evaluation, suite, number)
    known = note_of(suite, picked.image)
    note = f"{picked.why}: {picked.gain:+.2f} dB{f'; {known}' if known else ''}"
    return {"name": picked.image, "note": note, "pictures": pictures, "pairs": pairs}


def _colors(evaluation: Evaluation, suite: SuiteResult) -> dict[str, str]:
    """By method; where there are more than colours, they begin again."""
    found, counts = {}, {"noisy": 0, "baseline": 0, "ours": 0}
    colors = {"noisy": (_NOISY_COLOR,), "baseline": _BASELINE_COLORS, "ours": _OUR_COLORS}
    for method in suite.methods:
        role = evaluation.methods[method].role
        found[method] = colors[role][counts[role] % len(colors[role])]
        counts[role] += 1
    return found


def _mean_charts(evaluation: Evaluation, suite: SuiteResult, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    charts = []
    for name in HEADLINE:
        rows = [
            (evaluation.methods[method].label, mean.value, mean.low, mean.high, colors[method])
            for method, means in suite.means.items()
            if math.isfinite((mean := means[name]).value)
        ]
        if rows:
            label = f"{METRICS[name]}: means over {suite.name}, with 95 % intervals over scenes"
            charts.append({"svg": themed_svg(means_axes(METRICS[name], rows), label)})
    return charts


def _curve_charts(suite: SuiteResult, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    if len(suite.curve) < 2:
        return []
    charts = []
    for name in HEADLINE:
        axes = new_axes(METRICS[name])
        axes.set_xlabel("input: mean MS-SSIM of the bucket", color=INK)
        for method in suite.methods:
            points = [(bucket.score, bucket.means[method][name].value) for bucket in suite.curve]
            points = [point for point in points if math.isfinite(point[1])]
            add_line(axes, points, method, color=colors[method], linestyle=_DASHES[suite.roles[method]][0])
        charts.append({"svg": themed_svg(axes, f"{METRICS[name]} over the noise of the input, {suite.name}")})
    return charts


def _sortable(value: float) -> float:
    """JSON and scripts of pages know no infinity."""
    return value if math.isfinite(value) else 1e9


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
