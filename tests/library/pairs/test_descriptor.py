from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from library.errors import DataError
from library.pairs.descriptor import (
    CleanEntry,
    PairEntry,
    export_descriptor,
    import_descriptor,
    read_descriptor,
    write_descriptor,
)
from library.pairs.generate import generate
from library.pairs.index import Pair, read_index, write_index
from library.pairs.prepare import DirectReader, ScenePreparation, Settings
from library.pairs.store import PairStore
from library.pairs.tree import scan_tree

MATRIX = [[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552], [0.0, 0.0, 0.0]]
CROPS = [
    {
        "coordinates": [768, 0],
        "gt_linrec2020_fpath": "../crops/proc/lin_rec2020/s/gt/a.cr2.768_0.tif",
        "f_linrec2020_fpath": "../crops/proc/lin_rec2020/s/b.cr2.768_0.tif",
        "gt_bayer_fpath": "../crops/src/Bayer/s/gt/a.cr2.768_0.npy",
        "f_bayer_fpath": "../crops/src/Bayer/s/b.cr2.768_0.npy",
    }
]
BAYER: dict[str, Any] = {
    "gt_fpath": "../../datasets/RawNIND/src/Bayer/TEST_7D-2/gt/a.cr2",
    "f_fpath": "../../datasets/RawNIND/src/Bayer/TEST_7D-2/b.cr2",
    "image_set": "TEST_7D-2",
    "best_alignment": [2, -2],
    "best_alignment_loss": 0.0079,
    "mask_fpath": "../../datasets/RawNIND/masks_0.4/m.png",
    "mask_mean": 0.9965,
    "is_bayer": True,
    "rgb_xyz_matrix": MATRIX,
    "overexposure_lb": 0.9355,
    "raw_gain": 2.081,
    "rgb_gain": 2.084,
    "rgb_msssim_score": 0.859,
    "crops": CROPS,
}
XTRANS = {**BAYER, "is_bayer": False, "rgb_xyz_matrix": None, "raw_gain": None, "crops": []}
UNSCORED = {key: value for key, value in BAYER.items() if key != "rgb_msssim_score"}
CLEAN = {
    "bayer_fpath": "../extraraw/trougnouf/src/Bayer/c.arw",
    "overexposure_lb": 1.0,
    "rgb_xyz_matrix": MATRIX,
    "crops": [{k: v for k, v in CROPS[0].items() if k in ("coordinates", "gt_linrec2020_fpath", "gt_bayer_fpath")}],
}
DEVELOPED = {
    **{key: value for key, value in BAYER.items() if key != "crops"},
    "gt_linrec2020_fpath": "gt.tif",
    "f_linrec2020_fpath": "f.tif",
    "dt_xmp": "gt.tif.xmp",
    "gt_manproc_fpath": "dt/gt.tif",
    "f_manproc_fpath": "dt/f.tif",
    "gt_rgb_mean": 0.0513,
}
UNKNOWN = {**BAYER, "a field of tomorrow": [1, {"deep": None}]}
ALL = [BAYER, XTRANS, UNSCORED, CLEAN, DEVELOPED, UNKNOWN]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, one of them with two clean images and a truncated file."""
    return generate(tmp_path_factory.mktemp("planted") / "tree", scenes=2, width=256, height=192, seed=1).folder


@pytest.fixture(scope="module")
def prepared(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    rows = []
    for scene in scan_tree(tree):
        preparation = ScenePreparation(scene, tree, folder, Settings(tile=256, targets="recomputed"))
        preparation.run(DirectReader())
        rows += preparation.rows()
    write_index(folder, rows)
    return folder


def test_every_field_of_every_kind_of_entry_is_written_as_it_was_read(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(ALL))
    write_descriptor(tmp_path / "ours.yaml", read_descriptor(tmp_path / "theirs.yaml"))
    assert yaml.safe_load((tmp_path / "ours.yaml").read_text()) == ALL


def test_entries_are_read_by_their_kind(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(ALL))
    entries = read_descriptor(tmp_path / "theirs.yaml")
    assert [type(entry) for entry in entries] == [PairEntry, PairEntry, PairEntry, CleanEntry, PairEntry, PairEntry]
    first = entries[0]
    assert isinstance(first, PairEntry)
    assert first.best_alignment == [2, -2]
    assert first.crops is not None
    assert (first.crops[0].left, first.crops[0].top) == (1536, 0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{a: 1}", "no list"),
        ("[1]", "entry 0 is no mapping"),
        (yaml.safe_dump([BAYER, {**BAYER, "crops": [1]}]), "entry 1"),
        (yaml.safe_dump([{k: v for k, v in BAYER.items() if k != "mask_mean"}]), "mask_mean"),
        ("[unclosed", "cannot be read"),
    ],
)
def test_what_is_no_descriptor_is_refused_by_entry_and_field(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text(content)
    with pytest.raises(DataError, match=complaint):
        read_descriptor(tmp_path / "d.yaml")


def test_a_prepared_folder_comes_back_from_its_descriptor(tree: Path, prepared: Path, tmp_path: Path) -> None:
    export_descriptor(prepared, tree, tmp_path / "d.yaml")
    rows = import_descriptor(tmp_path / "d.yaml", tmp_path / "back").rows
    assert read_index(tmp_path / "back") == sorted(rows, key=lambda row: (row.scene, row.gt_path, row.f_path))
    stores = [PairStore(folder) for folder in (prepared, tmp_path / "back")]
    lost = {"gt_path", "f_path", "offset_y", "offset_x", "alignment_error", "alignment_sigma", "alignment_ok", "key"}
    assert len(stores[0]) == len(stores[1])
    for index, (ours, back) in enumerate(zip(*(store.pairs for store in stores), strict=True)):
        for field in dataclasses.fields(Pair):
            if field.name not in lost | {"flags"}:
                assert getattr(back, field.name) == pytest.approx(getattr(ours, field.name)), field.name
        assert back.gt_path == str(tree / ours.gt_path)
        size = stores[0].size(index)
        for one, other in zip(*(vars(store.crop(index, 0, 0, *size)).values() for store in stores), strict=True):
            assert torch.equal(one, other)


def test_relative_paths_count_from_where_the_tools_ran(
    tree: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    export_descriptor(prepared, tree.name, Path("d.yaml"))
    monkeypatch.chdir(tmp_path)
    rows = import_descriptor(tree.parent / "d.yaml", tmp_path / "back", base=tree.parent).rows
    assert all(isinstance(row, Pair) for row in rows)


def test_an_entry_whose_files_cannot_be_used_fails_alone(tree: Path, prepared: Path, tmp_path: Path) -> None:
    entries = export_descriptor(prepared, tree, tmp_path / "d.yaml")
    pairs = [entry for entry in entries if isinstance(entry, PairEntry)]
    broken = [
        dataclasses.replace(pairs[0], f_fpath=str(tmp_path / "gone.dng")),
        dataclasses.replace(pairs[1], mask_fpath=str(tmp_path / "gone.png")),
        dataclasses.replace(pairs[2], is_bayer=False),
        dataclasses.replace(pairs[3], best_alignment=[5000, 0]),
    ]
    write_descriptor(tmp_path / "d.yaml", [*broken, *pairs[4:]])
    imported = import_descriptor(tmp_path / "d.yaml", tmp_path / "back")
    reasons = [failure.error for failure in imported.failures]
    assert len(imported.rows) == len(pairs)
    assert imported.exit_code == 1
    assert str(imported).splitlines()[-1].endswith(f": {len(pairs) - 4} pairs, 4 failed")
    for reason, part in zip(reasons, ("gone.dng", "gone.png", "is_bayer", "nothing"), strict=True):
        assert part in reason


def test_tiles_belong_to_the_file_whose_whole_name_they_bear(tree: Path, prepared: Path, tmp_path: Path) -> None:
    """RawNIND's tool took every file whose name began with another's, and so mixed a.cr2 with a.cr2.tif."""
    pair = next(row for row in read_index(prepared) if isinstance(row, Pair) and not row.f_is_clean)
    gt, f = Path(pair.gt_path).name, Path(pair.f_path).name
    for root, suffix in (("src/Bayer", "npy"), ("proc/lin_rec2020", "tif")):
        for name in (f"gt/{gt}.0_0", f"gt/{gt}.768_0", f"{f}.0_0", f"{f}.0_768", f"{f}.tif.768_0"):
            tile = tmp_path / "crops" / root / pair.scene / f"{name}.{suffix}"
            tile.parent.mkdir(parents=True, exist_ok=True)
            tile.write_bytes(b"")
    entries = export_descriptor(prepared, tree, tmp_path / "d.yaml", crops=tmp_path / "crops")
    (entry,) = (e for e in entries if isinstance(e, PairEntry) and e.f_fpath.endswith(f) and e.gt_fpath.endswith(gt))
    assert entry.crops is not None
    assert [tile.coordinates for tile in entry.crops] == [[0, 0]]
    assert entry.crops[0].f_bayer_fpath == str(tmp_path / "crops/src/Bayer" / pair.scene / f"{f}.0_0.npy")


def test_a_mask_that_is_a_few_lines_smaller_counts_those_as_invalid(tree: Path, prepared: Path, tmp_path: Path) -> None:
    from PIL import Image

    entries = export_descriptor(prepared, tree, tmp_path / "d.yaml")
    entry = entries[0]
    assert isinstance(entry, PairEntry)
    Image.fromarray(np.full((100, 120), 255, np.uint8)).save(entry.mask_fpath)
    write_descriptor(tmp_path / "d.yaml", [entry])
    (row,) = import_descriptor(tmp_path / "d.yaml", tmp_path / "back").rows
    assert isinstance(row, Pair)
    assert row.mask_mean == pytest.approx(100 * 120 / (row.overlap.height * row.overlap.width))
