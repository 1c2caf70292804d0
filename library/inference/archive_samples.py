"""Pieces of pictures before and after, for a person to look at: those that changed most, and some by chance.

Every file's middle is compared; a few are kept, in the output folder. Which ones, does not depend on the order in which
files end, nor on how many workers there are.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from library.files.atomic import whole_file
from library.files.raw import RawImage
from library.inference.outputs import centre_of, upright
from library.ops.demosaic import demosaic_malvar
from library.ops.develop import auto_exposure_ev, develop_camera_rgb
from library.ops.levels import normalize_levels

NUM_KEPT = 4
"""Of each kind."""
_LARGEST = 99.0


@dataclass(frozen=True)
class Sample:
    """The middle of one raw.

    name    of the raw
    rank    the beginning of its digest: the smallest of many are a choice by chance, and always the same one
    psnr    dB, between before and after as developed; the less, the more has changed
    before  PNG, in base64: demosaiced (Malvar), developed at the exposure of the other
    after   PNG, in base64
    """

    name: str
    rank: str
    psnr: float
    before: str
    after: str


class Sampler:
    """Makes the samples of one worker: of a file that may be among those which are kept in the end."""

    def __init__(self) -> None:
        self._ranks: list[str] = []
        self._psnrs: list[float] = []

    def sample(self, raw: RawImage, centre: Tensor) -> Sample | None:
        """The sample of a raw, None for one that others came before, or that is no Bayer mosaic.

        centre  (3, h, w) camera RGB of the raw's `centre_of`, denoised
        """
        if len(raw.cfa) != 4 or min(centre.shape[1:]) < 2:
            return None
        rows, columns = centre_of(raw.height, raw.width)
        black = torch.from_numpy(raw.black_level)
        # Of even height and width, as levels are given.
        height, width = (side // 2 * 2 for side in centre.shape[1:])
        mosaic = torch.from_numpy(raw.mosaic[rows, columns][:height, :width])
        before = demosaic_malvar(normalize_levels(mosaic, black, float(raw.white_level)), cfa=raw.cfa)
        after = centre[:, :height, :width]
        colour = {"as_shot_white_balance": raw.as_shot_white_balance, "xyz_to_camera": raw.xyz_to_camera}
        exposure_ev = auto_exposure_ev(after, **colour)
        pictures = [develop_camera_rgb(p, **colour, exposure_ev=exposure_ev) for p in (before, after)]
        error = float((pictures[0] - pictures[1]).square().mean())
        psnr = min(_LARGEST, -10 * math.log10(error)) if error > 0 else _LARGEST
        if not self._is_wanted(raw.sha256, psnr):
            return None
        pngs = [_png(picture, raw.orientation) for picture in pictures]
        return Sample(raw.path, raw.sha256[:16], round(psnr, 2), *pngs)

    def _is_wanted(self, rank: str, psnr: float) -> bool:
        self._ranks = sorted({*self._ranks, rank})[:NUM_KEPT]
        self._psnrs = sorted([*self._psnrs, psnr])[:NUM_KEPT]
        return rank in self._ranks or psnr in self._psnrs


class Samples:
    """Those that are kept of all runs into a folder with one bundle, in `.stillgrain/samples.json`.

    They are a courtesy: a file that cannot be read or written means that there are none.
    """

    def __init__(self, folder: Path, bundle_digest: str) -> None:
        self._path = folder / ".stillgrain" / "samples.json"
        self._bundle_digest = bundle_digest
        found = read_samples(folder)
        self._samples = {s.rank: s for s in found[1]} if found[0] == bundle_digest else {}

    def offer(self, sample: Sample) -> None:
        """Keep a sample, if it is one of those."""
        offered = {**self._samples, sample.rank: sample}
        kept = {s.rank: s for s in (*changed_most(offered.values()), *by_chance(offered.values()))}
        if kept != self._samples:
            self._samples = kept
            content = {"bundle": self._bundle_digest, "samples": [asdict(s) for s in kept.values()]}
            with suppress(OSError), whole_file(self._path) as temporary:
                temporary.write_text(json.dumps(content), encoding="utf-8")


def read_samples(folder: Path) -> tuple[str, list[Sample]]:
    """The digest of a bundle, and the samples of its files that are kept in an output folder."""
    try:
        content = json.loads((folder / ".stillgrain" / "samples.json").read_text(encoding="utf-8"))
        return content["bundle"], [Sample(**values) for values in content["samples"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []


def changed_most(samples: Iterable[Sample]) -> list[Sample]:
    """The first few of those that changed most."""
    return sorted(samples, key=lambda s: (s.psnr, s.rank))[:NUM_KEPT]


def by_chance(samples: Iterable[Sample]) -> list[Sample]:
    """A few of all, by lot."""
    return sorted(samples, key=lambda s: s.rank)[:NUM_KEPT]


def named(sample: Sample, name: str) -> Sample:
    """The same, of a raw that has another name for people."""
    return replace(sample, name=name)


def _png(srgb: Tensor, orientation: int) -> str:
    codes = (srgb * 255).round().byte().permute(1, 2, 0).numpy()
    target = io.BytesIO()
    Image.fromarray(upright(codes, orientation).copy()).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()
