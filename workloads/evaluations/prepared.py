"""Pairs of a prepared folder as an evaluation opens them: what both images show, the truth at the noisy one's
brightness."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from library.errors import DataError
from library.files.raw import RawImage
from library.pairs.index import Pair
from library.pairs.store import PairStore

_TILE = 1024
"""Pixels a side that are demosaiced at a time: the same numbers as at once, in less memory."""


class OpenedPair(NamedTuple):
    """A pair's overlap, (H, W) full-resolution pixels.

    raw    the noisy image, from a red photosite on
    truth  (1, 3, H, W) the clean one's camera RGB over the pair's gain, black at 0 and the noisy one's white at 1
    mask   (1, 1, H, W), 1 where a pixel counts, 0 where something moved or the clean image saturates
    """

    raw: RawImage
    truth: Tensor
    mask: Tensor


def open_pair(prepared: str | Path, key: str) -> OpenedPair:
    """A Bayer pair of a prepared folder, whole.

    key     as the index has it
    raises  DataError for a folder that is not prepared, a pair that is no longer there, and files that are missing
    """
    store = _store(str(prepared))
    index = next((i for i, pair in enumerate(store.pairs) if pair.key == key), None)
    if index is None:
        raise DataError(f"{prepared}: was prepared anew while this ran: run again")
    pair = store.pairs[index]
    height, width = store.size(index)
    truth, mask = torch.empty(3, height, width), torch.empty(1, height, width)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            crop = store.crop(index, top, left, min(_TILE, height - top), min(_TILE, width - left))
            where = (..., slice(top, top + _TILE), slice(left, left + _TILE))
            truth[where], mask[where] = crop.target, crop.mask
    # The truth and not the noisy image: networks are given raws as they were recorded.
    truth /= pair.raw_gain if pair.raw_gain is not None else pair.rgb_gain
    return OpenedPair(_raw(prepared, pair, store.counts(index)), truth[None], mask[None])


@functools.lru_cache(maxsize=2)
def _store(prepared: str) -> PairStore:
    return PairStore(prepared)


def _raw(prepared: str | Path, pair: Pair, counts: np.ndarray) -> RawImage:
    assert pair.f_black_level is not None
    assert pair.f_white_level is not None
    black = np.reshape(pair.f_black_level, (2, 2)).astype(np.float32)
    matrix = pair.xyz_to_camera
    return RawImage(
        path=str(Path(prepared) / pair.f_path),
        mosaic=counts,
        cfa="RGGB",
        black_level=black,
        white_level=pair.f_white_level,
        decoder="workload: prepare",
        sha256=pair.f_sha256,
        camera_white_level=black + pair.f_overexposure_lb * (pair.f_white_level - black),
        as_shot_white_balance=np.array(pair.white_balance),
        xyz_to_camera=None if matrix is None else np.reshape(matrix, (3, 3)),
        model=pair.camera,
        iso=pair.f_iso,
        noise_profile=((pair.f_noise_a, pair.f_noise_b),),
        exif={},
    )
