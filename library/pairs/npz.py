"""Prepared pairs as NPZ files that NumPy alone reads, and back; the contract is NPZ.md beside this file."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from library.errors import DataError
from library.files.atomic import whole_file
from library.pairs.index import INDEX, Pair, row_of, write_index
from library.pairs.masks import pack_mask
from library.pairs.store import PairStore, mask_file, picture_file

VERSION = 1
Progress = Callable[[list[Any]], Iterable[Any]]

_SHAPES = {
    "mask": (np.bool_, 2),
    "black_level": (np.float64, 2),
    "white_level": (np.float64, 0),
    "gain": (np.float64, 0),
    "noise": (np.float64, 1),
    "xyz_to_camera": (np.float64, 2),
    "clean": (np.float16, 3),
}


def export_npz(prepared: str | Path, folder: str | Path, *, progress: Progress = iter) -> list[Path]:
    """Every pair of a prepared folder as a file; those that are there already stay. Returns their paths.

    raises  DataError for a folder that is not prepared
    """
    store = PairStore(prepared)
    paths = []
    for index in progress(list(range(len(store)))):
        pair = store.pairs[index]
        path = Path(folder) / pair.scene / f"{pair.gt_sha256[:16]}-{pair.f_sha256[:16]}.npz"
        if not path.exists():
            with whole_file(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **_arrays_of(store, index))
        paths.append(path)
    return paths


def _arrays_of(store: PairStore, index: int) -> dict[str, Any]:
    pair = store.pairs[index]
    height, width = (side // 2 * 2 for side in store.size(index))  # pictures of X-Trans may share an odd number
    crop = store.crop(index, 0, 0, height, width)
    matrix = np.full((3, 3), np.nan) if pair.xyz_to_camera is None else np.reshape(pair.xyz_to_camera, (3, 3))
    noisy = store.counts(index) if pair.f_mosaic is not None else crop.noisy.permute(1, 2, 0).numpy().astype(np.float16)
    gain = pair.raw_gain if pair.raw_gain is not None else pair.rgb_gain
    return {
        "version": np.int64(VERSION),
        "noisy": noisy,
        "clean": crop.target.permute(1, 2, 0).numpy().astype(np.float16),
        "mask": crop.mask[0].numpy().astype(bool),
        "black_level": np.reshape(pair.f_black_level or (0.0,) * 4, (2, 2)).astype(np.float64),
        "white_level": np.float64(pair.f_white_level or 1),
        "gain": np.float64(gain),
        "noise": np.array([pair.f_noise_a, pair.f_noise_b]),
        "xyz_to_camera": matrix.astype(np.float64),
        "facts": json.dumps(asdict(pair), ensure_ascii=False),
    }


def import_npz(files: str | Path, prepared: str | Path, *, progress: Progress = iter) -> int:
    """A prepared folder made of NPZ files, ready to train on. Returns the number of pairs.

    files   a folder, searched with its subfolders
    raises  DataError naming the file and the key that breaks the contract; for a prepared folder that is there already,
            and where there are no files
    """
    folder = Path(prepared)
    if (folder / INDEX).exists():
        raise DataError(f"{folder}: is a prepared folder already: give another one to import into")
    found = sorted(Path(files).rglob("*.npz"))
    if not found:
        raise DataError(f"{files}: holds no .npz files; `stillgrain data export` makes them")
    write_index(folder, list(_imported(found, folder, progress)))
    return len(found)


def _imported(files: list[Path], folder: Path, progress: Progress) -> Iterator[Pair]:
    for path in progress(files):
        arrays = _read(path)
        pair, arrays_by_file = _pair_of(path, arrays)
        for name, array in arrays_by_file.items():
            with whole_file(folder / name) as temporary, temporary.open("wb") as file:
                np.save(file, array)
        yield pair


def _pair_of(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Pair, dict[str, np.ndarray]]:
    """The pair that a file holds, both of whose images begin at the same pixel, and its arrays by their files."""
    row = row_of(json.loads(str(arrays["facts"])))
    if not isinstance(row, Pair):
        raise DataError(f"{path}: facts says that the pair could not be prepared: leave the file out")
    height, width = arrays["mask"].shape
    matrix = arrays["xyz_to_camera"]
    is_bayer = arrays["noisy"].ndim == 2
    # Two pairs may share an image and begin elsewhere in it, so each has its own copies.
    own = f"arrays/{row.scene}/{row.gt_sha256[:16]}-{row.f_sha256[:16]}"
    target, mask = f"{own}.target.npy", mask_file(row.scene, row.gt_sha256, row.f_sha256)
    pair = replace(
        row,
        height=height,
        width=width,
        f_height=height,
        f_width=width,
        shift_y=0,
        shift_x=0,
        xyz_to_camera=None if np.isnan(matrix).any() else tuple(matrix.ravel().tolist()),
        gt_mosaic=None,
        mask=mask,
        target=target,
    )
    if is_bayer:
        noisy = f"{own}.mosaic.npy"
        levels = tuple(arrays["black_level"].ravel().tolist()), int(arrays["white_level"])
        pair = replace(pair, f_mosaic=noisy, f_black_level=levels[0], f_white_level=levels[1])
    else:
        # A picture is found by its image's digest, which is now that of the part it was cut to.
        digests = {side: hashlib.sha256(arrays[side].tobytes()).hexdigest() for side in ("clean", "noisy")}
        pair = replace(pair, gt_sha256=digests["clean"], f_sha256=digests["noisy"])
        noisy = picture_file(row.scene, digests["noisy"])
    return pair, {noisy: arrays["noisy"], target: arrays["clean"], mask: pack_mask(arrays["mask"])}


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that keeps the contract."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is no NPZ file ({error}): export it anew, or leave it out") from None
    if (version := arrays.get("version", "none")) != VERSION:
        raise DataError(f"{path}: version is {version}, and this program reads {VERSION}: export it anew")
    if missing := sorted({"noisy", "facts", *_SHAPES} - arrays.keys()):
        raise DataError(f"{path}: lacks {', '.join(missing)}: see library/pairs/NPZ.md for what a pair's file holds")
    for name, (dtype, dimensions) in _SHAPES.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != dimensions:
            raise DataError(
                f"{path}: {name} is {arrays[name].dtype} of {arrays[name].ndim} dimensions, and should be "
                f"{np.dtype(dtype)} of {dimensions}"
            )
    noisy, size = arrays["noisy"], arrays["mask"].shape
    if (noisy.dtype, noisy.ndim) not in ((np.uint16, 2), (np.float16, 3)):
        raise DataError(
            f"{path}: noisy is {noisy.dtype} {noisy.shape}, and should be uint16 (H, W) or float16 (H, W, 3)"
        )
    if noisy.shape[:2] != size or arrays["clean"].shape != (*size, 3) or size[0] % 2 or size[1] % 2:
        raise DataError(f"{path}: noisy, clean and mask are of different or odd sizes")
    return arrays
