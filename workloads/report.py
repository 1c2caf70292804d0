"""A run as one page that can be mailed: numbers, curves and pictures inside it, nothing fetched, no script needed.

<run folder>/report.html
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from library.errors import DataError
from library.files.places import place, read_text
from library.inference.ledger import Entry, Ledger
from library.rate_distortion import decibels
from library.training.recorder import read_metrics
from workloads.archives.page import is_archive, write_archive_page
from workloads.charts import AXIS, add_legend, add_line, add_rate_curve, new_axes, png_picture, svg
from workloads.evaluations.methods import DOMAINS, MASK, METRICS
from workloads.evaluations.page import HEADLINE, note_of, pictures_of, rows_of, verdict, write_evaluation_page
from workloads.evaluations.results import Evaluation, SuiteResult, format_metric, is_evaluation
from workloads.runs.folder import is_run
from workloads.sweeps.page import write_sweep_page
from workloads.sweeps.results import Results, is_sweep
from workloads.templates import write_page

_BPP = "bpp: estimated bits per photosite of the mosaic; of a codec for linear pictures, per pixel."
_COLORS = ("#1c6570", "#b5651d", "#6a3d8a", "#2f7d32")
_LINESTYLES = ("-", "--", ":")
_LARGEST_TABLE = 200


class Step(NamedTuple):
    """A command that was run, and how long it took."""

    seconds: float
    command: str


def read_steps(path: str | Path) -> list[Step]:
    """Steps from a text file with lines of seconds, a tab and a command.

    raises  DataError for anything else
    """
    try:
        lines = [line.split("\t", 1) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return [Step(float(seconds), command) for seconds, command in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: holds no steps ({error}); a line reads seconds, tab, command") from None


def write_report(
    folder: str | Path | UPath,
    *,
    evaluation: str | Path | None = None,
    archives: Sequence[str | Path] = (),
    steps: Sequence[Step] = (),
) -> UPath:
    """Write the page of a folder anew, whichever workload left it, and return its path.

    folder  output of `workload: evaluate`, `sweep` or `infer`; or a training run, as `write_run_report`, which the
            rest is for
    raises  DataError for what is none of these or cannot be read, and for a page that the rest has no place on
    """
    path = place(folder)
    if is_run(path):
        return write_run_report(folder, evaluation=evaluation, archives=archives, steps=steps)
    if evaluation or archives or steps:
        raise DataError(f"{folder} is no training run: evaluation, archives and steps belong on the page of one")
    if is_sweep(path):
        results = Results(path)
        results.write()
        return write_sweep_page(results)
    if isinstance(path, Path) and is_evaluation(path):
        return write_evaluation_page(Evaluation.read(path))
    if isinstance(path, Path) and is_archive(path):
        return write_archive_page(path)
    raise DataError(f"{folder}: holds no training run, sweep, evaluation or archive; name the folder of one")


def write_run_report(
    run_folder: str | Path | UPath,
    *,
    evaluation: str | Path | None = None,
    archives: Sequence[str | Path] = (),
    steps: Sequence[Step] = (),
) -> UPath:
    """Write `report.html` of a run, whole or not at all, and return its path. What the folder lacks is left out.

    run_folder  of a training run: run.yaml, metrics.jsonl, bundle/manifest.json, images/
    evaluation  output folder of `workload: evaluate`
    archives    output folders of `workload: infer`
    steps       the commands that led here, to be shown
    raises      DataError for an evaluation or a ledger that cannot be read
    """
    folder = place(run_folder)
    manifest = _json(folder / "bundle" / "manifest.json")
    metrics = read_metrics(folder)
    model = _MODELS[manifest.get("type", "denoiser")](manifest) if manifest else None
    config = folder / "run.yaml"
    return write_page(
        folder / "report.html",
        "report.html.j2",
        title=folder.name,
        summary=_summary(manifest, model, metrics),
        tiles=model.tiles if model else [],
        evaluation=_evaluation(Path(evaluation)) if evaluation else None,
        rate_distortion=_rate_distortion(manifest),
        curves=_curves(metrics, manifest.get("step")),
        scenes=_validation_scenes(folder / "images"),
        scenes_note=model.scenes_note if model else "",
        model=model.facts if model else [],
        archives=[_archive(Path(archive)) for archive in archives],
        steps=[(step.command, _duration(step.seconds)) for step in steps],
        config=read_text(config) if config.exists() else None,
        bpp=_BPP,
        domains=f"{DOMAINS} {MASK}",
    )


def _json(path: UPath) -> dict[str, Any]:
    return json.loads(read_text(path)) if path.exists() else {}


# --- the run ----------------------------------------------------------------------------------------------------------


class _Model(NamedTuple):
    """What the page says of a bundle, in the words of its type."""

    kind: str
    """As in "A ... , trained for 100 steps"."""
    tiles: list[tuple[str, str, str]]
    """Label, value and unit of what is told first."""
    facts: list[tuple[str, str]]
    scenes_note: str = ""
    """What to know about the validation scenes' pictures."""


def _summary(manifest: Mapping[str, Any], model: _Model | None, metrics: Sequence[Mapping[str, Any]]) -> str:
    steps = max((line["step"] for line in metrics), default=0)
    if model is None:
        return f"A training run after {steps:,} steps, without a bundle yet."
    return (
        f"{model.kind}, trained for {steps:,} steps; "
        f"its bundle holds the weights of step {manifest['step']:,}, the best in validation."
    )


def _denoiser(manifest: Mapping[str, Any]) -> _Model:
    geometry = manifest["geometry"]
    return _Model(
        kind=f"A {manifest['model']['kind']} raw denoiser",
        tiles=[
            *_picture_tiles(manifest["metrics"], "", ""),
            ("Parameters", f"{manifest['num_parameters']:,}", ""),
            ("Cost per pixel", *_kilo_macs(manifest["macs_per_pixel"])),
        ],
        facts=[
            ("Model", manifest["model"]["kind"]),
            ("Parameters", f"{manifest['num_parameters']:,}"),
            ("Multiply-accumulates per output pixel", f"{manifest['macs_per_pixel']:,.0f}"),
            ("Halo (context a tile needs)", f"{geometry['halo']} input pixels"),
            ("Lattice (tile origins are its multiples)", f"{geometry['lattice']} input pixels"),
            ("Input", _input(manifest)),
            ("Output", f"{manifest['output']['space']}, {manifest['output']['gain']} scale"),
            *_origin(manifest),
        ],
    )


def _codec(manifest: Mapping[str, Any]) -> _Model:
    geometry, macs, metrics = manifest["geometry"], manifest["macs_per_pixel"], manifest["metrics"]
    qualities = _qualities(metrics)
    middle = f"q{qualities[len(qualities) // 2]}" if qualities else ""
    suffix, at = (f".{middle}", f", at {middle}") if middle else ("", "")
    rate, gap = metrics.get(f"val/bpp{suffix}"), metrics.get("val/rate_gap")
    choice = f"{manifest['num_qualities']} qualities" if manifest["num_qualities"] > 1 else "one rate"
    return _Model(
        kind=f"A {manifest['model']['kind']} codec of {choice}",
        tiles=[
            *([(f"Validation rate{at}", f"{rate:#.3g}", "bpp")] if rate is not None else []),
            *_picture_tiles(metrics, suffix, at),
            *([("Coded bytes, against estimate", f"{100 * gap:+.2f}", "%")] if gap is not None else []),
            ("Encoding, per pixel", *_kilo_macs(macs["encoder"] + macs["entropy"])),
            ("Decoding, per pixel", *_kilo_macs(macs["decoder"] + macs["entropy"])),
        ],
        facts=[
            ("Model", manifest["model"]["kind"]),
            ("Rates of one network", choice),
            ("Parameters", f"{manifest['num_parameters']:,}"),
            (
                "Multiply-accumulates per output pixel",
                ", ".join(f"{part} {macs[part]:,.0f}" for part in ("encoder", "decoder", "entropy")),
            ),
            ("Analysis reach (context a latent needs)", f"{geometry['analysis_reach']} input pixels"),
            ("Synthesis reach (latents around a pixel's own)", str(geometry["synthesis_reach"])),
            ("Stride (from latent to latent)", f"{geometry['stride']} input pixels"),
            ("Lattice (tile origins are its multiples)", f"{geometry['lattice']} input pixels"),
            ("Input", _input(manifest)),
            ("Output", manifest["output"]["space"]),
            ("Codec (what its files are decoded with)", manifest["codec_digest"]),
            *_origin(manifest),
        ],
        scenes_note=f"Decoded from quality {middle[1:]}." if middle else "",
    )


_MODELS = {"denoiser": _denoiser, "codec": _codec}
"""By the manifest's type."""


def _picture_tiles(metrics: Mapping[str, float], suffix: str, at: str) -> list[tuple[str, str, str]]:
    """How good the validation's pictures are, in what was measured.

    suffix  of the metrics' names: ".q24", or nothing
    at      the same in words, for the labels
    """
    named = {"psnr": ("PSNR, developed", "dB"), "ms_ssim": ("MS-SSIM", ""), "psnr.linear": ("PSNR, linear", "dB")}
    return [
        (f"Validation {label}{at}", format_metric(name, metrics[f"val/{name}{suffix}"]), unit)
        for name, (label, unit) in named.items()
        if f"val/{name}{suffix}" in metrics
    ]


def _kilo_macs(macs: float) -> tuple[str, str]:
    return f"{macs / 1e3:,.2f}", "kMAC"


def _input(manifest: Mapping[str, Any]) -> str:
    return f"{manifest['input']['channels']} channels, {manifest['input']['range']}"


def _origin(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a bundle comes from."""
    return [
        ("Trained on", manifest["data_digest"]),
        ("Bundle", f"{manifest['name']} sha256:{manifest['digest'][:16]}"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
        ("Commit", (manifest["git_commit"] or "unknown")[:12]),
    ]


def _qualities(names: Iterable[str]) -> list[int]:
    """At which a codec of many was validated, rising: 24 for `val/bpp.q24`. None for a codec of one rate."""
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"val/bpp\.q(\d+)", name)))


def _validation_scenes(images: UPath) -> list[dict[str, Any]]:
    roles = {"noisy": "Noisy (Malvar demosaic)", "denoised": "Denoised", "decoded": "Decoded", "truth": "Truth"}
    files = images.iterdir() if images.is_dir() else ()
    names = sorted(f.name.removesuffix("_truth.png") for f in files if f.name.endswith("_truth.png"))
    return [
        {
            "name": name,
            "pairs": _pairs([role for role in roles if (images / f"{name}_{role}.png").exists()]),
            "pictures": [
                png_picture(images / f"{name}_{role}.png", role, label)
                for role, label in roles.items()
                if (images / f"{name}_{role}.png").exists()
            ],
        }
        for name in names
    ]


def _pairs(roles: Sequence[str]) -> list[tuple[int, int]]:
    """Of pictures of these roles, which are to lie under a slider: noisy and the network's, and that and the truth."""
    wanted = [("noisy", "denoised"), ("noisy", "decoded"), ("denoised", "truth"), ("decoded", "truth")]
    return [(roles.index(left), roles.index(right)) for left, right in wanted if {left, right} <= {*roles}]


# --- curves -----------------------------------------------------------------------------------------------------------


def _curves(metrics: Sequence[Mapping[str, Any]], best_step: int | None) -> list[dict[str, str]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for line in metrics:
        series.setdefault(f"{line['split']}/{line['name']}", []).append((line["step"], line["value"]))
    streams = {name: name.removeprefix("train/bpp.") for name in series if name.startswith("train/bpp.")}
    # The highest first: so lie the lines, and so the legend.
    by_quality = {f"val/psnr.q{quality}": f"q{quality}" for quality in reversed(_qualities(series))}
    charts = (
        (
            "Loss; in training, mean since the line before",
            "loss",
            {"train/loss": "training", "val/loss": "validation"},
        ),
        (
            f"Rate in training by stream, mean since the line before. {_BPP}",
            "rate (bpp)",
            {"train/bpp": "total"} | streams,
        ),
        ("PSNR on the validation scenes", "PSNR (dB)", {"val/psnr": "developed", "val/psnr.linear": "linear"}),
        ("PSNR on the validation scenes by quality, developed", "PSNR (dB)", by_quality),
        ("MS-SSIM on the validation scenes, developed", "MS-SSIM", {"val/ms_ssim": "MS-SSIM"}),
    )
    curves = []
    for note, label, names in charts:
        shown = {name: legend for name, legend in names.items() if name in series}
        if shown:
            lines = {legend: series[name] for name, legend in shown.items()}
            is_validated = any(name.startswith("val/") for name in shown)
            chart = _chart(label, lines, best_step if is_validated else None)
            curves.append({"source": chart, "label": note, "note": note})
    return curves


def _chart(label: str, lines: Mapping[str, list[tuple[int, float]]], best_step: int | None) -> str:
    axes = new_axes(label)
    looks = itertools.cycle(itertools.product(_LINESTYLES, _COLORS))
    for (legend, points), (linestyle, color) in zip(lines.items(), looks, strict=False):
        add_line(axes, points, legend, color=color, linestyle=linestyle)
    if best_step is not None:
        axes.axvline(best_step, color=AXIS, linewidth=0.9, linestyle=(0, (4, 3)), label="published")
    if best_step is not None or len(lines) > 1:
        add_legend(axes)
    axes.set_xlim(0, max(step for points in lines.values() for step, _ in points) * 1.03)
    return svg(axes)


def _rate_distortion(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """Quality over rate of the published weights, where they were validated at two qualities or more."""
    metrics = manifest.get("metrics", {})
    charts = (
        ("psnr", "PSNR on the validation scenes, developed", "PSNR (dB)"),
        ("ms_ssim", "MS-SSIM on the validation scenes, developed; in dB: -10 log10(1 - MS-SSIM)", "MS-SSIM (dB)"),
    )
    curves = []
    for metric, note, label in charts:
        points = {
            f"q{quality}": (
                metrics[f"val/bpp.q{quality}"],
                float(decibels(metric, metrics[f"val/{metric}.q{quality}"])),
            )
            for quality in _qualities(metrics)
        }
        # A log axis has no place for a rate of 0, nor any for a picture without error.
        points = {name: point for name, point in points.items() if point[0] > 0 and all(map(math.isfinite, point))}
        if len(points) > 1:
            axes = new_axes(label)
            add_rate_curve(axes, points, color=_COLORS[0])
            curves.append({"source": svg(axes), "label": note, "note": note})
    return curves


# --- evaluation -------------------------------------------------------------------------------------------------------


def _evaluation(folder: Path) -> dict[str, Any]:
    found = Evaluation.read(folder)
    return {"suites": [_evaluated(found, suite) for suite in found.suites.values()]}


def _evaluated(evaluation: Evaluation, suite: SuiteResult) -> dict[str, Any]:
    crop = evaluation.config["crop"]
    area = "whole" if crop == "whole" else f"their centre {crop} x {crop} pixels"
    return {
        "name": suite.name,
        "verdict": verdict(evaluation, suite),
        "headings": [METRICS[name] for name in HEADLINE],
        "rows": rows_of(evaluation, suite, HEADLINE),
        "caption": f"Means over {len(suite.images)} images, {area}, with 95 % intervals over scenes. Best in bold.",
        "failures": list(suite.failures.items()),
        "scenes": [_evaluated_scene(evaluation, suite, number) for number in range(len(suite.picked))],
    }


def _evaluated_scene(evaluation: Evaluation, suite: SuiteResult, number: int) -> dict[str, Any]:
    picked = suite.picked[number]
    pictures, pairs = pictures_of(evaluation, suite, number)
    speed = suite.of(suite.ours[0], picked.image)
    size = f"{speed.megapixels:.2f} megapixels denoised in {speed.seconds:.1f} s"
    note = "; ".join([picked.why, *([known] if (known := note_of(suite, picked.image)) else []), size])
    return {"name": picked.image, "note": note, "pictures": pictures, "pairs": pairs}


# --- archives ---------------------------------------------------------------------------------------------------------


def _archive(folder: Path) -> dict[str, Any]:
    with Ledger.read(folder) as ledger:
        counts = ledger.counts()
        raws: dict[tuple[str, str, str | None], list[Entry]] = {}
        for entry in ledger.rows():
            raws.setdefault((entry.input_path, entry.status, entry.error), []).append(entry)
    # What went wrong is what one looks for: it comes first, and all of it.
    rows = sorted(raws.items(), key=lambda item: item[0][1] == "done")
    num_shown = max(_LARGEST_TABLE, sum(status != "done" for _, status, _ in raws))
    total = sum(entries[0].seconds for entries in raws.values())
    return {
        "name": folder.name,
        "summary": (
            f"{sum(counts.values())} outputs: {counts['done']} done, {counts['failed']} failed, "
            f"{counts['quarantined']} quarantined; {_duration(total)} of work."
        ),
        "rows": [
            {
                "input": input_path,
                "outputs": ", ".join(entry.output_path for entry in entries),
                "status": status,
                "seconds": f"{entries[0].seconds:.1f}",
                "error": error,
            }
            for (input_path, status, error), entries in rows[:num_shown]
        ],
        "num_hidden": len(rows[num_shown:]),
    }


# --- pieces -----------------------------------------------------------------------------------------------------------


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
