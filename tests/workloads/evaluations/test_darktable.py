"""What darktable is given and what is made of its answer. A program of the same name stands in for it, which develops
by a curve that is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from library.errors import ConfigError, ImageFileError
from library.files.raw import RawImage
from workloads.evaluations.darktable import darktable_version, develop_with_darktable

PROGRAM = """#!{python}
import sys
import numpy, tifffile
from PIL import Image
if sys.argv[1] == "--version":
    sys.exit(print("this is darktable 0.0"))
source, target, *options = sys.argv[1:]
assert options[:4] == ["--icc-type", "SRGB", "--apply-custom-presets", "0"], options
assert options[4] == "--core" and ":memory:" in options, options
samples = tifffile.imread(source)
if samples.max() == samples.min():
    sys.exit("nothing to be seen")
linear = (samples.astype(float) - 1024) / (65535 - 1024)
picture = (255 * linear.clip(0, 1) ** 0.5).round().astype(numpy.uint8)
Image.fromarray(picture[: 30 if linear.max() > 0.9 else None]).save(target)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "bin" / "darktable-cli"
    path.parent.mkdir()
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    darktable_version.cache_clear()
    yield path
    darktable_version.cache_clear()


@pytest.fixture
def raw() -> RawImage:
    mosaic = np.zeros((40, 50), np.uint16)
    black = np.zeros((2, 2), np.float32)
    return RawImage(path="a.dng", mosaic=mosaic, cfa="RGGB", black_level=black, white_level=9, decoder="", sha256="",
                    exif={}, orientation=6)  # fmt: skip


def test_it_is_given_camera_rgb_and_its_picture_is_taken(program: Path, raw: RawImage):
    camera_rgb = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0)) * 0.8
    found = develop_with_darktable(camera_rgb, raw)
    assert darktable_version() == "this is darktable 0.0"
    torch.testing.assert_close(found, camera_rgb.sqrt(), rtol=0, atol=0.51 / 255)


def test_what_it_cannot_develop_is_told_in_its_words(program: Path, raw: RawImage):
    with pytest.raises(ImageFileError, match="darktable could not develop it: nothing to be seen"):
        develop_with_darktable(torch.zeros(1, 3, 40, 50), raw)
    bright = torch.linspace(0, 1, 40 * 50).reshape(1, 1, 40, 50).expand(1, 3, 40, 50)
    with pytest.raises(ImageFileError, match="darktable made 50 x 30 px of it"):
        develop_with_darktable(bright, raw)


def test_where_it_is_not_installed_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    darktable_version.cache_clear()
    with pytest.raises(ConfigError, match=r"needs the program darktable-cli.*or set develop to ours"):
        darktable_version()
