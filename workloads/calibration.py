"""Calibrate cameras: their raws in, a noise profile and its photon transfer curves out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from library.errors import DataError
from library.files.atomic import whole_file
from library.files.noise_profile import write_noise_profiles
from library.inference.archive_inputs import find_raws
from library.inference.calibrate import Calibration, Measured, calibrate_raws
from workloads.charts import AXIS, INK, SERIES, new_axes

_MOST_POINTS = 3000


@dataclass(frozen=True)
class CalibrationResult:
    """What `calibrate` came to, to be printed."""

    calibration: Calibration
    profile: Path | None
    """Where it was written; None when there was nothing to trust."""
    picture: Path | None

    @property
    def exit_code(self) -> int:
        return 0 if self.profile is not None else 1

    def to_json(self) -> dict[str, Any]:
        return {
            "profile": str(self.profile) if self.profile else None,
            "cameras": [
                {
                    "make": m.make,
                    "model": m.model,
                    "iso": m.iso,
                    "files": list(m.files),
                    "a": m.transfer.a,
                    "b": m.transfer.b,
                    "a_error": m.transfer.a_error if np.isfinite(m.transfer.a_error) else None,
                    "flat_share": m.transfer.flat_share,
                    "doubt": m.transfer.doubt,
                }
                for m in self.calibration.measured
            ],
            "failures": self.calibration.failures,
        }

    def __str__(self) -> str:
        table = Table(box=None, pad_edge=False)
        for column in ("camera", "ISO", "files", "a", "b", "flat", ""):
            table.add_column(column, justify="left" if column in ("camera", "") else "right")
        for m in self.calibration.measured:
            t = m.transfer
            numbers = (f"{t.a:.3g} ± {t.a_error:.0%}", f"{t.b:.2g}") if t.doubt is None else ("", "")
            camera = m.model if m.model.startswith(m.make) else f"{m.make} {m.model}".strip()
            table.add_row(
                camera, f"{m.iso:g}", str(len(m.files)), *numbers, f"{t.flat_share:.0%}", Text(t.doubt or "trusted")
            )
        console = Console(file=io.StringIO(), width=160, color_system=None)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        lines = [line.rstrip() for line in console.file.getvalue().rstrip().splitlines()]
        for camera in self.calibration.profiles.cameras:
            if camera.hot_pixels:
                lines.append(f"{camera.model}: {len(camera.hot_pixels)} hot pixels")
        lines += [f"not used: {reason}" for reason in self.calibration.failures.values()]
        return "\n".join([*lines, *(str(path) for path in (self.profile, self.picture) if path is not None)])


def calibrate(
    raws: Sequence[str],
    output: Path,
    *,
    dark: Sequence[str] = (),
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> CalibrationResult:
    """Estimate the noise of every camera and ISO in some folders, and write a profile and a picture of the curves.

    raws      folders or raw files; flat pictures are best, ordinary ones with even places will do
    output    the profile, a .json that `dataset.sensor.table` takes; the picture lies beside it
    dark      folders or raw files taken with the lens covered
    progress  wraps the files, to show how far it is
    raises    DataError when there are no raws
    """
    files = [Path(raw.path) for raw in find_raws(raws, output.parent)]
    frames = [Path(raw.path) for raw in find_raws(dark, output.parent)] if dark else []
    files = [file for file in files if file not in set(frames)]
    if not files:
        raise DataError(f"{', '.join(raws)}: holds no raw files; give pictures of something even")
    found = calibrate_raws(progress(files), frames)
    trusted = bool(found.profiles.cameras)
    if trusted:
        write_noise_profiles(output, found.profiles)
    picture = output.with_suffix(".png") if found.measured else None
    if picture is not None:
        _draw(picture, found.measured)
    return CalibrationResult(found, output if trusted else None, picture)


def _draw(path: Path, measured: Sequence[Measured]) -> None:
    """Variance over brightness of the blocks of each camera and ISO, and the line that was fitted."""
    axes = new_axes("variance")
    axes.set_xlabel("brightness (black 0, white 1)", color=INK)
    axes.set_yscale("log")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.set_size_inches(8, 5.5)
    rng = np.random.default_rng(0)
    level = np.linspace(0, 1, 200)
    # Those that are trusted last, so that they have a colour each and lie on top.
    ordered = [m for m in measured if m.transfer.doubt] + [m for m in measured if not m.transfer.doubt]
    num_doubted = sum(m.transfer.doubt is not None for m in measured)
    for number, m in enumerate(ordered, -num_doubted):
        t = m.transfer
        color = AXIS if t.doubt else SERIES[number % len(SERIES)]
        x, v = m.blocks.levels[-1], m.blocks.variances[-1]
        shown = rng.choice(len(x), min(len(x), _MOST_POINTS), replace=False)
        axes.plot(x[shown], v[shown], ".", color=color, markersize=2, alpha=0.35, rasterized=True)
        label = f"{m.model} ISO {m.iso:g}"
        if t.doubt is None:
            axes.plot(level, t.a * level + t.b, color=color, linewidth=1.6, label=label)
        else:
            axes.plot([], [], ".", color=color, label=f"{label}: not trusted")
    lowest = min(float(np.quantile(m.blocks.variances[-1], 0.01)) for m in measured if len(m.blocks.variances[-1]))
    axes.set_ylim(bottom=lowest / 2)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
