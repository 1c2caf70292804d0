"""Pictures as darktable develops them by its defaults, through its command line.

Source: darktable's user manual, program invocation, darktable-cli.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from library.errors import ConfigError, ImageFileError
from library.files.dng import write_linear_dng
from library.files.picture import read_image
from library.files.raw import RawImage
from library.inference.outputs import OUTPUT_BLACK, OUTPUT_WHITE
from library.ops.levels import quantize

_PROGRAM = "darktable-cli"
_TIME_LIMIT_S = 600


@functools.cache
def darktable_version() -> str:
    """What its results depend on. Raises ConfigError, saying what to do, where it is not installed or does not run."""
    if shutil.which(_PROGRAM) is None:
        raise ConfigError(
            f"develop: darktable needs the program {_PROGRAM}, which is not on the path here: install darktable on "
            "every node, or set develop to ours"
        )
    run = subprocess.run([_PROGRAM, "--version"], capture_output=True, text=True, timeout=_TIME_LIMIT_S)
    if not (lines := run.stdout.split("\n")[0].strip()):
        raise ConfigError(f"develop: {_PROGRAM} --version says nothing ({run.stderr.strip()[-200:]}): repair darktable")
    return lines


def develop_with_darktable(camera_rgb: Tensor, raw: RawImage) -> Tensor:
    """A picture through a linear DNG: its own defaults for a raw of this camera, without anybody's presets.

    camera_rgb  (1, 3, h, w), black at 0 and white at 1; what lies below black by more than 1/63 of white is clipped
    raw         whose white balance and colours it has
    returns     (1, 3, h, w) sRGB in [0, 1]
    raises      ImageFileError when darktable makes no picture of that size
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "picture.dng"), Path(folder, "picture.png")
        counts = quantize(camera_rgb[0] * (OUTPUT_WHITE - OUTPUT_BLACK) + OUTPUT_BLACK).permute(1, 2, 0).numpy()
        # Not turned, and not denoised by what the raw says of its noise.
        metadata = dataclasses.replace(raw.metadata(), orientation=1, pixel_aspect=1.0, noise_profile=None)
        write_linear_dng(source, counts, black_level=OUTPUT_BLACK, white_level=OUTPUT_WHITE, metadata=metadata)
        words = [_PROGRAM, str(source), str(target), "--icc-type", "SRGB", "--apply-custom-presets", "0"]
        words += ["--core", "--configdir", str(Path(folder, "config")), "--library", ":memory:", "--disable-opencl"]
        run = subprocess.run(words, capture_output=True, text=True, timeout=_TIME_LIMIT_S)
        if run.returncode or not target.exists():
            said = (run.stderr or run.stdout).strip()[-300:]
            raise ImageFileError(
                raw.path, f"darktable could not develop it: {said or f'it ended with {run.returncode}'}"
            )
        rgb = read_image(target).rgb
    if rgb.shape[:2] != camera_rgb.shape[-2:]:
        raise ImageFileError(
            raw.path, f"darktable made {rgb.shape[1]} x {rgb.shape[0]} px of it: it must keep its size"
        )
    return torch.tensor(rgb).permute(2, 0, 1)[None]
