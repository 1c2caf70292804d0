"""Prepared pairs as a suite: which are chosen, and that a method is given what a training was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.config import validate
from library.errors import DataError, ImageFileError
from library.ops.cfa import pack_cfa
from library.pairs.index import write_index
from library.pairs.masks import pack_mask
from library.pairs.store import PairStore
from tests.prepared_pairs import FAILED, write_pair
from workloads.evaluate import Config
from workloads.evaluations.methods import Scene
from workloads.evaluations.prepared import open_pair
from workloads.suite import scene_linear

SIZE = (200, 216)
GAIN = 2.0
CROP = 176


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A scene to train on, and reserved ones: of odd and even shifts, one not aligned, one of two clean images."""
    shifts = {"TEST_a": (3, -5), "TEST_b": (-2, 4), "TEST_lost": (0, 0), "UNK_TEST_c": (1, 1), "UNK_d": (0, 2)}
    pairs = [
        replace(
            write_pair(tmp_path, shift, name=name, size=SIZE),
            raw_gain=GAIN,
            mask_mean=0.9,
            f_iso=iso,
            rgb_msssim=score,
            alignment_ok=name != "TEST_lost",
        )
        for (name, shift), iso, score in zip(
            {**shifts, "train": (0, 0), "other": (0, 0)}.items(),
            (800.0, 3200.0, 800.0, None, 800.0, 100.0, 100.0),
            (0.9, 0.7, 0.9, 0.5, 0.9, 0.9, 0.9),
            strict=True,
        )
    ]
    clean = replace(pairs[0], f_is_clean=True, key="clean")
    write_index(tmp_path, [*pairs, clean, replace(FAILED, scene="TEST_failed")])
    return tmp_path


def suite(prepared: Path, **settings: Any) -> Any:
    data = {"kind": "prepared", "prepared": str(prepared)} | settings
    return validate(Config, {"suites": {"s": data}, "output": str(prepared / "out")}, "test").suites["s"]


@pytest.mark.parametrize(
    ("settings", "scenes"),
    [
        ({}, ["TEST_a", "TEST_b", "UNK_TEST_c"]),
        ({"part": "unseen"}, ["UNK_d"]),
        ({"part": "validation", "scenes": {"validation": ["train"]}}, ["train"]),
        ({"scenes": {"test": ["*_a"]}}, ["TEST_a"]),
        ({"quality": {"aligned": False}}, ["TEST_a", "TEST_b", "TEST_lost", "UNK_TEST_c"]),
        ({"iso": [1000, 5000]}, ["TEST_b"]),
        ({"score": [0, 0.8]}, ["TEST_b", "UNK_TEST_c"]),
        ({"cameras": ["sony ilce-7c"], "not_cameras": ["Other"]}, ["TEST_a", "TEST_b", "UNK_TEST_c"]),
    ],
)
def test_noisy_pairs_of_a_part_that_are_good_enough_are_chosen(
    prepared: Path, settings: dict[str, Any], scenes: list[str]
):
    assert [sample.scene for sample in suite(prepared, **settings).samples()] == scenes


def test_validation_scenes_are_those_of_the_training_even_where_they_are_few(prepared: Path):
    (scene,) = {sample.scene for sample in suite(prepared, part="validation").samples()}
    assert scene in ("train", "other")


def test_a_part_that_holds_nothing_is_said_in_words(prepared: Path):
    with pytest.raises(DataError, match=r"of 7 scenes 0 are for unseen, and of their 0 noisy images none"):
        suite(prepared, part="unseen", scenes={"unseen": []}).samples()
    with pytest.raises(DataError, match=r"4 are for test, and of their 4 noisy images none .*`stillgrain data summary"):
        suite(prepared, quality={"min_valid": 0.95}).samples()
    with pytest.raises(DataError, match="is no index of pairs"):
        suite(prepared / "nowhere").samples()


def test_a_method_is_given_what_a_training_is_and_the_truth_at_its_brightness(prepared: Path):
    store = PairStore(prepared)
    for sample in suite(prepared).samples():
        assert sample.pair is not None
        raw, truth, mask = open_pair(prepared, sample.pair)
        index = next(i for i, pair in enumerate(store.pairs) if pair.key == sample.pair)
        crop = store.crop(index, 0, 0, *store.size(index))
        torch.testing.assert_close(pack_cfa(scene_linear(raw)), crop.noisy)
        torch.testing.assert_close(truth[0] * GAIN, crop.target)
        assert torch.equal(mask[0], crop.mask)
        assert Path(sample.noisy).is_file()
        assert Path(sample.truth).is_file()


def test_what_a_pairs_mask_leaves_out_does_not_count(prepared: Path):
    sample = suite(prepared).samples()[0]
    store = PairStore(prepared)
    index = next(i for i, pair in enumerate(store.pairs) if pair.key == sample.pair)
    (height, width), settings = store.size(index), {"of_pictures": False, "noise_free": False, "crop": CROP}
    scene = Scene(sample, **settings, prepared=str(prepared))
    top, left = (height - CROP) // 2, (width - CROP) // 2
    whole = store.mask(index, 0, 0, height, width)[None]
    assert torch.equal(scene.mask, whole[..., top : top + CROP, left : left + CROP])
    np.save(prepared / store.pairs[index].mask, pack_mask(np.zeros((height, width), bool)))
    with pytest.raises(ImageFileError, match="nothing counts there"):
        Scene(sample, **settings, prepared=str(prepared))


def test_a_clean_suite_is_of_the_truths_sampled_without_noise(prepared: Path):
    data = {"kind": "clean", "of": {"kind": "prepared", "prepared": str(prepared)}}
    clean = validate(Config, {"suites": {"s": data}, "output": str(prepared / "out")}, "test").suites["s"]
    samples = clean.samples()
    assert [sample.scene for sample in samples] == ["TEST_a", "TEST_b", "UNK_TEST_c"]
    scene = Scene(samples[0], of_pictures=False, noise_free=True, crop=CROP, prepared=clean.prepared_folder)
    assert scene.raw is not None
    packed, (_, truth, _) = pack_cfa(scene_linear(scene.raw)), open_pair(prepared, str(samples[0].pair))
    torch.testing.assert_close(packed[0], truth[0, 0, ::2, ::2], rtol=0, atol=1e-4)


def test_a_folder_that_was_prepared_anew_meanwhile_is_refused(prepared: Path):
    with pytest.raises(DataError, match="prepared anew while this ran"):
        open_pair(prepared, "no such key")
