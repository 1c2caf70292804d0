"""The store's crops against whole images, and its masks against a synthetic mask: RawNIND's loader put half-resolution
coordinates into a full-resolution mask, so that every tile but the first was trained under another tile's mask."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from library.errors import ConfigError, DataError
from library.ops.cfa import pack_cfa, sample_cfa
from library.pairs.index import Pair, write_index
from library.pairs.store import DEMOSAICS, HALO, PairStore, balanced_demosaic, demosaic_named
from tests.prepared_pairs import BLACK, FAILED, WHITE, normalized, smooth_scene, synthetic_mask, write_pair

SIDES = (32, 36)
SHIFTS = [(0, 0), (2, -4), (-2, 4), (3, 5), (-3, 1), (1, -6), (-5, -7)]


def store_of(folder: Path, *pairs: Pair) -> PairStore:
    write_index(folder, [*pairs, FAILED])
    return PairStore(folder)


def all_crops(size: tuple[int, int], side: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(0, size[0] - side + 1, 2), range(0, size[1] - side + 1, 2)))


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_mask_lies_on_its_clean_image_for_every_crop_parity_and_sign_of_a_shift(
    shift: tuple[int, int], tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, shift, size=SIDES)
    write_index(tmp_path, [pair])
    store = PairStore(tmp_path, demosaic="bilinear")
    gt_rgb = smooth_scene(SIDES[0] + 40, SIDES[1] + 40)[:, 20:-20, 20:-20]
    shared = pair.overlap
    assert store.size(0) == (shared.height, shared.width)
    for top, left in all_crops(store.size(0), 12):
        crop = store.crop(0, top, left, 12, 12)
        rows = np.arange(shared.gt_top + top, shared.gt_top + top + 12)
        columns = np.arange(shared.gt_left + left, shared.gt_left + left + 12)
        assert np.array_equal(crop.mask[0].numpy(), synthetic_mask(rows, columns))
        # The truth is that of the very pixels whose mask this is: the scene is smooth, so demosaicing hardly errs.
        expected = gt_rgb[:, rows[:, None], columns[None, :]]
        inside = (slice(None), slice(3, -3), slice(3, -3))
        torch.testing.assert_close(crop.target[inside], expected[inside], atol=5e-4, rtol=0)
        # And what the noisy crop measured is what the truth says there.
        torch.testing.assert_close(crop.noisy, pack_cfa(sample_cfa(expected)), atol=1e-4, rtol=0)
    assert torch.equal(store.mask(0, 4, 6, 8, 10), store.crop(0, 4, 6, 8, 10).mask)


@pytest.mark.parametrize("method", list(DEMOSAICS))
@pytest.mark.parametrize("shift", [(0, 0), (3, -5)])
def test_a_crops_truth_has_the_bits_of_the_whole_image_demosaiced_once(
    method: str, shift: tuple[int, int], tmp_path: Path
) -> None:
    pair = write_pair(tmp_path, shift, size=SIDES)
    write_index(tmp_path, [pair])
    store = PairStore(tmp_path, demosaic=method)
    assert pair.gt_mosaic is not None
    assert pair.f_mosaic is not None
    shared = pair.overlap
    for file, where, read in (
        (pair.gt_mosaic, shared.gt, lambda *c: store.crop(0, *c).target),
        (pair.f_mosaic, shared.f, lambda *c: store.noisy_rgb(0, *c)),
    ):
        mosaic = normalized(np.load(tmp_path / file))
        whole = balanced_demosaic(mosaic, pair.white_balance, demosaic_named(method))[(slice(None), *where)]
        for top, left in all_crops(store.size(0), 10)[::7]:
            assert torch.equal(read(top, left, 10, 10), whole[:, top : top + 10, left : left + 10])


def test_a_stored_truth_is_the_recomputed_one_within_half_float(tmp_path: Path) -> None:
    pairs = [write_pair(tmp_path, (3, -4), stored=stored, name=f"s{stored}") for stored in (False, True)]
    store = store_of(tmp_path, *pairs)
    for top, left in all_crops(store.size(0), 16)[::5]:
        recomputed, stored = (store.crop(i, top, left, 16, 16).target for i in (0, 1))
        torch.testing.assert_close(stored, recomputed, rtol=2**-11, atol=2**-24)


def test_the_halo_covers_what_any_method_looks_at() -> None:
    rng = torch.Generator().manual_seed(0)
    mosaic = torch.rand(120, 120, generator=rng)
    for demosaic in DEMOSAICS.values():
        cut = demosaic(mosaic[20:100, 20:100])[:, HALO:-HALO, HALO:-HALO]
        assert torch.equal(cut, demosaic(mosaic)[:, 20 + HALO : 100 - HALO, 20 + HALO : 100 - HALO])


def test_levels_follow_the_site_and_nothing_is_clipped(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, (0, 0), size=SIDES)
    assert pair.f_mosaic is not None
    mosaic = np.full(SIDES, 400, np.uint16)
    mosaic[0, 0] = 20000
    np.save(tmp_path / pair.f_mosaic, mosaic)
    noisy = store_of(tmp_path, pair).crop(0, 0, 0, 4, 4).noisy
    assert noisy[0, 0, 0] == pytest.approx((20000 - 512) / (WHITE - 512))
    below = [(400 - black) / (WHITE - black) for black in BLACK]
    assert noisy[:, 1, 1].tolist() == pytest.approx(below)


def test_clean_images_with_themselves_are_the_unpaired_stream(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, (0, 0), size=SIDES)
    alone = replace(pair, f_path=pair.gt_path, f_sha256=pair.gt_sha256, f_mosaic=pair.gt_mosaic, f_is_clean=True)
    alone = replace(alone, key="alone")
    store = store_of(tmp_path, pair, alone)
    assert [store.pairs[i].key for i in store.images] == ["alone"]
    crop = store.clean(0, 4, 8, 12, 12)
    assert store.clean_size(0) == SIDES
    torch.testing.assert_close(pack_cfa(sample_cfa(crop.target)), crop.noisy)


def test_failed_pairs_are_no_pairs_and_do_not_change_the_digest(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, (0, 0), size=SIDES)
    with_failure = store_of(tmp_path, pair)
    assert [p.key for p in with_failure.pairs] == [pair.key]
    write_index(tmp_path, [pair])
    assert PairStore(tmp_path).digest == with_failure.digest


def test_a_store_travels_to_another_process(tmp_path: Path) -> None:
    write_index(tmp_path, [write_pair(tmp_path, (1, 1), size=SIDES)])
    store = PairStore(tmp_path, demosaic="bilinear")
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.crop(0, 2, 2, 8, 8).target, store.crop(0, 2, 2, 8, 8).target)


def test_a_file_that_is_missing_or_damaged_is_named_with_the_remedy(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, (0, 0), size=SIDES)
    store = store_of(tmp_path, pair)
    assert pair.f_mosaic is not None
    for damage in ("cut", "missing"):
        file = tmp_path / pair.f_mosaic
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-9])
        else:
            file.unlink()
        with pytest.raises(DataError, match=rf"{file.name}.*prepare"):
            store.crop(0, 0, 0, 4, 4)


def test_an_unknown_demosaic_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    write_index(tmp_path, [])
    with pytest.raises(ConfigError, match=r"'nearest'.*bilinear, .*malvar"):
        PairStore(tmp_path, demosaic="nearest")
