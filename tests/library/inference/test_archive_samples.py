from __future__ import annotations

import base64
import io
import itertools
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.raw import RawImage, read_raw
from library.inference.archive_samples import NUM_KEPT, Sampler, Samples, by_chance, changed_most, read_samples
from library.inference.outputs import CENTRE, centre_of
from library.ops.demosaic import demosaic_malvar
from library.ops.levels import normalize_levels


def raw_of(folder: Path, seed: int, *, orientation: int = 1, side: int = 40) -> RawImage:
    mosaic = np.random.default_rng(seed).integers(600, 9000, (side, side + 6)).astype(np.uint16)
    metadata = ImageMetadata(orientation=orientation)
    path, black_level = folder / f"{seed}.dng", np.full((2, 2), 512.0)
    write_cfa_dng(path, mosaic, cfa="GBRG", black_level=black_level, white_level=16383, metadata=metadata)
    return read_raw(path)


def picture_of(raw: RawImage) -> torch.Tensor:
    """The raw's middle as it is, demosaiced."""
    rows, columns = centre_of(raw.height, raw.width)
    mosaic = torch.from_numpy(raw.mosaic[rows, columns])
    levels = normalize_levels(mosaic, torch.from_numpy(raw.black_level), float(raw.white_level))
    return demosaic_malvar(levels, cfa=raw.cfa)


def test_which_samples_are_kept_depends_on_neither_order_nor_workers(tmp_path: Path) -> None:
    raws = [raw_of(tmp_path, seed) for seed in range(24)]
    changes = torch.rand(24, generator=torch.Generator().manual_seed(0))
    kept = []
    for trial, num_workers in itertools.product(range(2), (1, 3)):
        samplers = [Sampler() for _ in range(num_workers)]
        folder = tmp_path / f"{trial} {num_workers}"
        samples, order = Samples(folder, "b"), list(range(24))
        random.Random(trial).shuffle(order)
        for number in order:
            changed = picture_of(raws[number]) * (1 - 0.3 * changes[number])
            if (sample := samplers[number % num_workers].sample(raws[number], changed)) is not None:
                samples.offer(sample)
        kept.append(sorted((s.rank, s.psnr, s.before, s.after) for s in read_samples(folder)[1]))
    assert all(others == kept[0] for others in kept)
    assert NUM_KEPT <= len(kept[0]) <= 2 * NUM_KEPT


def test_the_most_changed_and_those_by_chance_are_what_their_names_say(tmp_path: Path) -> None:
    sampler, samples = Sampler(), Samples(tmp_path, "b")
    everything = []
    for seed in range(12):
        raw = raw_of(tmp_path, seed)
        fresh = Sampler().sample(raw, picture_of(raw) * (1 - seed / 40))
        assert fresh is not None
        everything.append(fresh)
        if (sample := sampler.sample(raw, picture_of(raw) * (1 - seed / 40))) is not None:
            samples.offer(sample)
    found = read_samples(tmp_path)[1]
    assert changed_most(found) == sorted(everything, key=lambda s: s.psnr)[:NUM_KEPT]
    assert by_chance(found) == sorted(everything, key=lambda s: s.rank)[:NUM_KEPT]


def test_a_picture_that_did_not_change_looks_the_same_before_and_after_and_upright(tmp_path: Path) -> None:
    raw = raw_of(tmp_path, 0, orientation=6)
    sample = Sampler().sample(raw, picture_of(raw))
    assert sample is not None
    assert sample.before == sample.after
    assert sample.psnr == 99
    with Image.open(io.BytesIO(base64.b64decode(sample.after))) as image:
        assert image.size == (40, 46)


def test_the_middle_keeps_the_phase_of_the_mosaic_whatever_the_size() -> None:
    for height, width in itertools.product((1, 2, 7, 255, 256, 257, 258, 999, 4000), repeat=2):
        rows, columns = centre_of(height, width)
        assert (rows.start % 2, columns.start % 2) == (0, 0)
        assert (rows.stop - rows.start, columns.stop - columns.start) == (min(height, CENTRE), min(width, CENTRE))
        assert rows.stop <= height
        assert columns.stop <= width


def test_samples_of_another_bundle_and_damaged_ones_are_forgotten(tmp_path: Path) -> None:
    raw = raw_of(tmp_path, 0)
    sample = Sampler().sample(raw, picture_of(raw))
    assert sample is not None
    Samples(tmp_path, "one").offer(sample)
    assert read_samples(tmp_path) == ("one", [sample])
    other = Sampler().sample(raw_of(tmp_path, 1), picture_of(raw))
    assert other is not None
    Samples(tmp_path, "two").offer(other)
    assert read_samples(tmp_path) == ("two", [other])
    (tmp_path / ".stillgrain" / "samples.json").write_text("{")
    assert read_samples(tmp_path) == ("", [])
    Samples(tmp_path, "two").offer(sample)
    assert read_samples(tmp_path) == ("two", [sample])
