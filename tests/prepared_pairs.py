"""Rows of an index, and small prepared pairs of a known scene, shift and mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from library.ops.cfa import sample_cfa
from library.pairs.index import Failure, Pair
from library.pairs.masks import pack_mask
from library.pairs.store import balanced_demosaic, demosaic_named, mask_file, mosaic_file, target_file

PAIR = Pair(
    scene="lamp & books",
    sensor="Bayer",
    gt_path="Bayer/lamp/gt/a.arw",
    f_path="Bayer/lamp/b.arw",
    gt_sha256="a" * 64,
    f_sha256="b" * 64,
    f_is_clean=False,
    camera="Sony ILCE-7C",
    gt_iso=50.0,
    f_iso=65535.0,
    cfa="RGGB",
    height=400,
    width=600,
    f_height=400,
    f_width=600,
    shift_y=2,
    shift_x=-3,
    offset_y=2.125,
    offset_x=-2.875,
    alignment_error=0.25,
    alignment_sigma=0.0625,
    alignment_ok=True,
    alignment_loss=0.0078125,
    raw_gain=2.081,
    rgb_gain=2.084,
    mask_mean=0.9965,
    rgb_msssim=0.859,
    overexposure_lb=0.9355,
    f_overexposure_lb=0.9355,
    black_level=(512.0, 512.5, 511.0, 512.0),
    f_black_level=(512.0, 512.0, 512.0, 513.0),
    white_level=16383,
    f_white_level=16383,
    white_balance=(2.0, 1.0, 1.5),
    noise_a=1e-5,
    noise_b=1e-7,
    f_noise_a=1e-2,
    f_noise_b=1e-4,
    xyz_to_camera=(0.7374, -0.2389, -0.0551, -0.5435, 1.3162, 0.2519, -0.1006, 0.1795, 0.6552),
    gt_mosaic="arrays/lamp/a.mosaic.npy",
    f_mosaic="arrays/lamp/b.mosaic.npy",
    mask="arrays/lamp/a-b.mask.npy",
    flags=("dark",),
    key="k1",
)
FAILED = Failure(
    scene="lamp & books",
    sensor="Bayer",
    gt_path="Bayer/lamp/gt/a.arw",
    f_path="Bayer/lamp/a broken.arw",
    gt_sha256="a" * 64,
    f_is_clean=False,
    error="a broken.arw: is truncated",
)

BLACK, WHITE = (512.0, 500.0, 520.0, 512.0), 16000
_OF_MOSAICS = (
    *("cfa", "raw_gain", "gt_mosaic", "f_mosaic"),
    *("black_level", "f_black_level", "white_level", "f_white_level"),
)


def of_pictures(pair: Pair, **others: Any) -> Pair:
    """The same of an X-Trans sensor: what concerns mosaics is None. The other fields are given."""
    return replace(pair, sensor="X-Trans", **dict.fromkeys(_OF_MOSAICS), **others)


def smooth_scene(height: int, width: int) -> torch.Tensor:
    """(3, H, W): no two pixels are alike."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return torch.stack([0.1 + 0.6 * y + 0.1 * x, 0.2 + 0.3 * x + 0.1 * y, 0.5 - 0.2 * y + 0.2 * x])


def counts(rgb: torch.Tensor) -> np.ndarray:
    """uint16 (H, W) RGGB DN of a picture."""
    black = torch.tensor(BLACK).reshape(2, 2).repeat(rgb.shape[1] // 2, rgb.shape[2] // 2)
    return (sample_cfa(rgb) * (WHITE - black) + black).round().numpy().astype(np.uint16)


def synthetic_mask(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A mask that is unlike itself at every other place, by the clean image's own pixels."""
    return (rows[:, None] * 7919 + columns[None, :] * 104729) % 11 < 7


def write_pair(
    folder: Path,
    shift: tuple[int, int],
    *,
    stored: bool = False,
    name: str = "s",
    size: tuple[int, int] = (44, 52),
) -> Pair:
    """A scene seen twice, the second time elsewhere, with a mask that belongs to the clean image's pixels."""
    height, width = size
    scene = smooth_scene(height + 40, width + 40)
    dy, dx = shift
    gt, f = (scene[:, y : y + height, x : x + width] for y, x in ((20, 20), (20 + dy, 20 + dx)))
    pair = replace(
        PAIR,
        scene=name,
        height=height,
        width=width,
        f_height=height,
        f_width=width,
        shift_y=dy,
        shift_x=dx,
        black_level=BLACK,
        f_black_level=BLACK,
        white_level=WHITE,
        f_white_level=WHITE,
        gt_mosaic=mosaic_file(name, PAIR.gt_sha256),
        f_mosaic=mosaic_file(name, PAIR.f_sha256),
        mask=mask_file(name, PAIR.gt_sha256, PAIR.f_sha256),
        target=target_file(name, PAIR.gt_sha256, "menon") if stored else None,
        key=f"{name} {shift}",
    )
    shared = pair.overlap
    mask = synthetic_mask(
        np.arange(shared.gt_top, shared.gt_top + shared.height),
        np.arange(shared.gt_left, shared.gt_left + shared.width),
    )
    arrays = {pair.gt_mosaic: counts(gt), pair.f_mosaic: counts(f), pair.mask: pack_mask(mask)}
    if pair.target:
        rgb = balanced_demosaic(normalized(counts(gt)), pair.white_balance, demosaic_named("menon"))
        arrays[pair.target] = rgb.permute(1, 2, 0).numpy().astype(np.float16)
    for file, array in arrays.items():
        assert file is not None
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / file, array)
    return pair


def normalized(mosaic: np.ndarray) -> torch.Tensor:
    black = torch.tensor(BLACK).reshape(2, 2).repeat(mosaic.shape[0] // 2, mosaic.shape[1] // 2)
    return (torch.from_numpy(mosaic.astype(np.float32)) - black) / (WHITE - black)
