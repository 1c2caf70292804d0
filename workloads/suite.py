"""Raws of known truth, and what everything that is measured on them is compared by: shared by the workloads that do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from library.errors import DataError, ImageFileError, RawFileError
from library.files.exr import read_exr
from library.files.markesteijn import demosaic
from library.files.picture import write_png
from library.files.raw import RAW_SUFFIXES, RawImage
from library.ops.develop import auto_exposure_ev, develop_camera_rgb
from library.ops.levels import normalize_levels


def find_pairs(
    raws: Path, truth: Path, named: Mapping[str, str] = MappingProxyType({})
) -> dict[str, tuple[Path, Path]]:
    """Name -> raw file and the EXR file of its truth, sorted by name: the raw's path below `raws`, without suffix.

    named   raw -> truth, both below their folders and without suffix, where they are not named alike; then these pairs
            are all, and what else the folders hold is not looked at
    raises  DataError naming what has no counterpart, and when there is nothing
    """
    for key, folder in (("raws", raws), ("truth", truth)):
        if not folder.is_dir():
            raise DataError(f"{key}: {folder} is not a folder; `workload: simulate` makes raws and truth")
    of_raws = _files(raws, RAW_SUFFIXES)
    of_truth = _files(truth, frozenset([".exr"]))
    if named:
        for missing, folder in ((named.keys() - of_raws, raws), (set(named.values()) - of_truth.keys(), truth)):
            if missing:
                raise DataError(f"{folder} holds no {', '.join(sorted(missing)[:5])}: name what is there, no suffix")
        return {name: (of_raws[name], of_truth[named[name]]) for name in sorted(named)}
    for has, lacks, remedy in (
        (of_raws.keys() - of_truth, f"truth of the same name in {truth}", "remove it from raws"),
        (of_truth.keys() - of_raws, f"raw of the same name in {raws}", "remove it from truth"),
    ):
        if has:
            raise DataError(f"{', '.join(sorted(has)[:5])} ({len(has)} in all) has no {lacks}: add it, or {remedy}")
    if not of_raws:
        raise DataError(f"{raws} holds no raws; `workload: simulate` makes raws and truth")
    return {name: (of_raws[name], of_truth[name]) for name in sorted(of_raws)}


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """By their paths below the folder, without suffix."""
    return {
        str(file.relative_to(folder).with_suffix("")): file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    }


def color_matrix(raw: RawImage) -> Tensor:
    """(1, 3, 3) XYZ to camera RGB. Raises `RawFileError` where the file has none."""
    if raw.xyz_to_camera is None:
        raise RawFileError(raw.path, "its camera's colour matrix is unknown, so its colours cannot be compared")
    return torch.from_numpy(raw.xyz_to_camera)[None]


def read_truth(path: Path, raw: RawImage) -> Tensor:
    """(1, 3, H, W) camera RGB. Raises `ImageFileError` for a file that cannot be this raw's truth."""
    image = read_exr(path)
    if image.chromaticities:
        raise ImageFileError(path, "has chromaticities, so it is not camera RGB as the raw's truth must be")
    if image.rgb.shape[:2] != raw.mosaic.shape:
        height, width = image.rgb.shape[:2]
        raise ImageFileError(
            path, f"is {width} x {height} px, but its raw is {raw.width} x {raw.height}: give the same pixels"
        )
    return torch.from_numpy(image.rgb).permute(2, 0, 1)[None]


def unsaturated(truth: Tensor, raw: RawImage) -> Tensor:
    """(1, 1, H, W), 1 where a pixel counts: where its truth is below the sensor's white.

    raises  RawFileError when no pixel does
    """
    mask = (truth < 1).all(dim=1, keepdim=True).float()
    if not mask.any():
        raise RawFileError(raw.path, "saturates all over its centre, so there is nothing to compare; leave it out")
    return mask


def scene_linear(raw: RawImage) -> Tensor:
    """The mosaic: (H, W) float32, black at 0 and white at 1, unclipped."""
    return normalize_levels(torch.from_numpy(raw.mosaic), torch.from_numpy(raw.black_level), float(raw.white_level))


def demosaiced(raw: RawImage) -> Tensor:
    """(1, 3, H, W) camera RGB, as noisy as the raw."""
    return demosaic(scene_linear(raw), cfa=raw.cfa, as_shot_white_balance=raw.as_shot_white_balance)[None]


def centre(height: int, width: int, side: int, path: str | Path) -> tuple[slice, slice]:
    """Rows and columns of a centre crop. Raises `RawFileError` where the raw is smaller."""
    if min(height, width) < side:
        raise RawFileError(path, f"is {width} x {height} px, smaller than crop={side}; lower it, or leave it out")
    top, left = (height - side) // 2, (width - side) // 2
    return slice(top, top + side), slice(left, left + side)


def write_crops(folder: Path, raw: RawImage, truth: Tensor, pictures: Mapping[str, Tensor]) -> None:
    """`<label>.png` of each (1, 3, H, W) camera RGB, developed, all with the exposure that suits the truth."""
    color = {"as_shot_white_balance": raw.as_shot_white_balance, "xyz_to_camera": raw.xyz_to_camera}
    exposure_ev = auto_exposure_ev(truth, **color)
    for label, camera_rgb in pictures.items():
        srgb = develop_camera_rgb(camera_rgb[0], exposure_ev=exposure_ev, **color)
        write_png(folder / f"{label}.png", np.ascontiguousarray((srgb * 255).round().byte().permute(1, 2, 0).numpy()))
