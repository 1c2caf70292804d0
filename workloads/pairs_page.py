"""What a prepared folder holds, as one page: counts by camera, ISO, scene and score, what failed and why, and the pairs
that a person should look at first, with what counts of them and what differs before and after the shift.

<prepared folder>/summary.html
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import avg_pool2d
from upath import UPath

from library.errors import DataError
from library.ops.develop import auto_exposure_ev, develop_camera_rgb
from library.pairs.index import Pair
from library.pairs.store import PairStore
from library.pairs.summary import HEADINGS, Group, Summary, cells, summarize
from workloads.charts import data_uri
from workloads.templates import write_page

_THUMBNAIL = 256
"""Pixels of its longer side."""
_CROP = 256
_BLURRED = 5
"""Pixels a side of the means that differences are of: of single pixels they would be mostly noise."""
_AMPLIFIED = 4
_NOT_THERE = 0.2
_INVALID = (230, 60, 40)
_MOST_FAILURES = 500

Progress = Callable[[list[Pair]], Iterable[Pair]]


def write_pairs_page(prepared: str | Path, *, most: int = 24, progress: Progress = iter) -> Summary:
    """Write `summary.html` into a prepared folder, whole or not at all, and return the numbers that it shows.

    most    pairs that are shown at most, the worst first
    raises  DataError for a folder without an index
    """
    summary = summarize(prepared)
    store = PairStore(prepared, demosaic="malvar")
    index_of = {(pair.scene, pair.key): index for index, pair in enumerate(store.pairs)}
    shown = [_shown(store, index_of[pair.scene, pair.key]) for pair in progress(list(summary.worst[:most]))]
    failures = sorted(Counter((row.scene, row.error) for row in summary.failures).items())
    write_page(
        UPath(summary.page),
        "pairs.html.j2",
        title=f"Pairs {summary.folder.resolve().name}",
        summary=_in_words(summary),
        tiles=_tiles(summary),
        headings=HEADINGS,
        groups=[(name, [_row(group) for group in groups]) for name, groups in summary.groups.items()],
        flags=sorted(summary.flags.items(), key=lambda item: (-item[1], item[0])),
        failures=failures[:_MOST_FAILURES],
        num_hidden=len(failures[_MOST_FAILURES:]),
        pairs=shown,
        num_pairs=len(summary.worst),
        amplified=_AMPLIFIED,
        blurred=_BLURRED,
        provenance=[
            ("Index", f"{summary.folder / 'index.parquet'}"),
            ("Content", f"sha256:{store.digest}"),
            ("This page", f"stillgrain data summary {summary.folder}"),
        ],
    )
    return summary


def _in_words(summary: Summary) -> str:
    noisy = sum(not pair.f_is_clean for pair in summary.pairs)
    failed = f"{len(summary.failures):,} pairs failed" if summary.failures else "none failed"
    return (
        f"{noisy:,} pairs of a clean and a noisy image and {len(summary.pairs) - noisy:,} of clean ones, of "
        f"{summary.num_scenes:,} scenes; {failed}."
    )


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    flagged = sum(bool(pair.flags) for pair in summary.pairs)
    pixels = sum(pair.overlap.height * pair.overlap.width for pair in summary.pairs if not pair.f_is_clean)
    return [
        ("Scenes", f"{summary.num_scenes:,}", ""),
        ("Cameras", f"{len(summary.groups['camera']):,}", ""),
        ("Pairs", f"{len(summary.pairs):,}", ""),
        ("Flagged", f"{flagged:,}", ""),
        ("Failed", f"{len(summary.failures):,}", ""),
        ("Noisy pixels", f"{pixels / 1e6:,.1f}", "MP"),
    ]


def _row(group: Group) -> dict[str, Any]:
    sorts = (group.scenes, group.noisy, group.clean, group.flagged, group.failed, group.score, group.valid, group.shift)
    return {"name": group.name, "cells": list(zip(cells(group), sorts, strict=True))}


# --- pictures ---------------------------------------------------------------------------------------------------------


def _shown(store: PairStore, index: int) -> dict[str, Any]:
    """A pair as the page has it. One whose files are gone is shown without pictures, and says why."""
    pair = store.pairs[index]
    shift = f"shift {pair.shift_y:+d} {pair.shift_x:+d} px (rows, columns)"
    sure = "" if pair.alignment_sigma is None else f" ± {pair.alignment_sigma:.2f}"
    score = "" if pair.rgb_msssim is None else f", MS-SSIM {pair.rgb_msssim:.3f}"
    isos = [f"ISO {iso:g}" if iso is not None else "unknown ISO" for iso in (pair.gt_iso, pair.f_iso)]
    facts = f"{pair.camera}, {isos[1]} against {isos[0]}, gain {pair.rgb_gain:.3g}"
    found: dict[str, Any] = {
        "scene": pair.scene,
        "flags": ", ".join(pair.flags),
        "notes": [facts, f"{shift}{sure}, {pair.mask_mean:.1%} valid{score}"],
        "files": [pair.gt_path, pair.f_path],
        "pictures": [],
        "problem": "",
    }
    try:
        found["pictures"] = _pictures(store, index)
    except DataError as error:
        found["problem"] = str(error)
    return found


@dataclass(frozen=True)
class _Look:
    """How the pictures of a pair are developed: all at the exposure that suits the clean one."""

    white_balance: np.ndarray
    xyz_to_camera: np.ndarray | None
    exposure_ev: float

    def __call__(self, camera_rgb: Tensor) -> Tensor:
        """(3, h, w) camera RGB at the clean image's brightness -> sRGB in [0, 1]."""
        color: dict[str, Any] = {"as_shot_white_balance": self.white_balance, "xyz_to_camera": self.xyz_to_camera}
        return develop_camera_rgb(camera_rgb, exposure_ev=self.exposure_ev, **color)


def _pictures(store: PairStore, index: int) -> list[dict[str, str]]:
    """Clean and what counts of it, whole; then a part of it one pixel to one: clean, noisy, and the difference before
    and after the shift, or once where there is none."""
    pair = store.pairs[index]
    matrix = None if pair.xyz_to_camera is None else np.reshape(pair.xyz_to_camera, (3, 3))
    balance = np.array(pair.white_balance)
    small, valid = _thumbnail(store, index)
    exposure_ev = auto_exposure_ev(small, as_shot_white_balance=balance, xyz_to_camera=matrix)
    look = _Look(balance, matrix, exposure_ev)
    whole = _codes(look(small))
    box = _interesting_part(store.size(index), look(small))
    top, left, height, width = box
    crop = store.crop(index, *box)
    gain, dy, dx = pair.rgb_gain, pair.shift_y, pair.shift_x
    clean = look(crop.target)
    unshifted = look(_unshifted(store, index, box) * gain)
    shifted = look(store.noisy_rgb(index, *box) * gain)
    scale = small.shape[2] / store.size(index)[1]
    is_part = height + 1 < store.size(index)[0] or width + 1 < store.size(index)[1]
    framed = (lambda codes: _framed(codes, box, scale)) if is_part else (lambda codes: codes)
    found = [
        _picture(framed(whole), "Clean, all of it", "in the frame what is shown beside" if is_part else ""),
        _picture(framed(_overlaid(whole, valid)), "What counts", f"all but red: {pair.mask_mean:.1%}"),
        _picture(_codes(clean), "Clean", f"{height} x {width} px at {top}, {left}"),
        _picture(_codes(shifted), "Noisy, after the shift", f"times {gain:.3g}"),
    ]
    after = _picture(_codes(_difference(clean, shifted)), "Difference", "black: none")
    if dy == dx == 0:
        return [*found, after]
    before = _picture(_codes(_difference(clean, unshifted)), "Difference before the shift", "grey: not in both")
    return [*found, before, after | {"label": f"Difference after {dy:+d} {dx:+d} px"}]


def _thumbnail(store: PairStore, index: int) -> tuple[Tensor, np.ndarray]:
    """(3, h, w) camera RGB of the clean image's overlap made small, and (h, w) how much of each of its pixels counts.
    A strip at a time, since all of a large picture takes much memory."""
    height, width = (side // 2 * 2 for side in store.size(index))
    step = 2 * max(1, -(-max(height, width) // (2 * _THUMBNAIL)))
    rows, masks = [], []
    for top in range(0, height - step + 1, step * 32):
        lines = min(step * 32, (height - top) // step * step)
        crop = store.crop(index, top, 0, lines, width // step * step)
        rows.append(avg_pool2d(crop.target[None], step)[0])
        masks.append(avg_pool2d(crop.mask[None], step)[0, 0].numpy())
    return torch.cat(rows, dim=1), np.concatenate(masks)


def _interesting_part(size: tuple[int, int], thumbnail: Tensor) -> tuple[int, int, int, int]:
    """Where a picture has most to see, as (top, left, height, width) in its pixels, all even."""
    height, width = (min(_CROP, side // 2 * 2) for side in size)
    detail = torch.zeros(thumbnail.shape[1:])
    detail[1:, 1:] = (thumbnail.diff(dim=1)[:, :, 1:].abs() + thumbnail.diff(dim=2)[:, 1:].abs()).sum(0)
    scale = detail.shape[0] / size[0]
    best = (-1.0, 0, 0)
    for top in {0, *range(0, size[0] - height + 1, max(2, height // 2 // 2 * 2))}:
        for left in {0, *range(0, size[1] - width + 1, max(2, width // 2 // 2 * 2))}:
            part = detail[
                int(top * scale) : int((top + height) * scale), int(left * scale) : int((left + width) * scale)
            ]
            best = max(best, (float(part.sum()), -top, -left))
    return -best[1], -best[2], height, width


def _unshifted(store: PairStore, index: int, box: tuple[int, int, int, int]) -> Tensor:
    """(3, h, w) camera RGB of the noisy image at the pixels of its own that the box has in the clean one: what lies
    there without a shift. NaN where that is outside of what both share."""
    pair, (top, left, height, width) = store.pairs[index], box
    found = torch.full((3, height, width), torch.nan)
    spans = []
    for start, length, shift, side in zip(
        (top, left), (height, width), (pair.shift_y, pair.shift_x), store.size(index), strict=True
    ):
        # In the overlap's own coordinates, which begin `shift` apart in the two images.
        first, last = max(0, start + shift), min(side // 2 * 2, start + shift + length)
        if last <= first:
            return found
        even_first, even_last = first // 2 * 2, -(-last // 2) * 2
        spans.append((even_first, even_last - even_first, first - even_first, first - start - shift, last - first))
    (y, tall, skip_y, at_y, rows), (x, wide, skip_x, at_x, columns) = spans
    rgb = store.noisy_rgb(index, y, x, tall, wide)
    found[:, at_y : at_y + rows, at_x : at_x + columns] = rgb[:, skip_y : skip_y + rows, skip_x : skip_x + columns]
    return found


def _difference(one: Tensor, other: Tensor) -> Tensor:
    """(3, h, w) grey: mean difference of developed pictures, after a mean over neighbours, amplified; dark grey where
    one is NaN."""
    blurred = avg_pool2d((one - other)[None], _BLURRED, stride=1, padding=_BLURRED // 2, count_include_pad=False)[0]
    grey = (blurred.abs().mean(0, keepdim=True) * _AMPLIFIED).clamp(0, 1)
    return grey.nan_to_num(nan=_NOT_THERE).expand(3, -1, -1)


def _codes(srgb: Tensor) -> np.ndarray:
    """(h, w, 3) uint8 of (3, h, w) in [0, 1]."""
    return np.ascontiguousarray((srgb * 255).round().byte().permute(1, 2, 0).numpy())


def _overlaid(codes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Grey where all counts, red where nothing does."""
    grey = np.repeat(codes.mean(-1, keepdims=True), 3, axis=-1)
    share = (1 - valid)[..., None] * 0.8
    return (grey * (1 - share) + np.array(_INVALID) * share).round().astype(np.uint8)


def _framed(codes: np.ndarray, box: tuple[int, int, int, int], scale: float) -> np.ndarray:
    """With a frame around a part."""
    top, left, height, width = (round(value * scale) for value in box)
    image = Image.fromarray(codes)
    ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), outline=(255, 255, 255))
    return np.asarray(image)


def _picture(codes: np.ndarray, label: str, note: str) -> dict[str, str]:
    content = io.BytesIO()
    Image.fromarray(codes).save(content, format="JPEG", quality=85)
    return {"source": data_uri("image/jpeg", content.getvalue()), "label": label, "note": note}
