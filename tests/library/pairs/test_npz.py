from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from library.errors import DataError
from library.pairs.index import write_index
from library.pairs.masks import pack_mask
from library.pairs.npz import export_npz, import_npz
from library.pairs.store import PairStore, picture_file
from tests.prepared_pairs import of_pictures, write_pair

CONTRACT = Path(__file__).parents[3] / "library/pairs/NPZ.md"
SHIFTS = [(0, 0), (2, -4), (3, 5), (-1, -6)]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "prepared"
    write_index(folder, [write_pair(folder, shift, name=f"scene {i}") for i, shift in enumerate(SHIFTS)])
    return folder


def test_a_pair_that_went_out_and_in_has_the_same_pixels_everywhere(prepared: Path, tmp_path: Path):
    export_npz(prepared, tmp_path / "npz")
    assert import_npz(tmp_path / "npz", tmp_path / "again") == len(SHIFTS)
    before, after = PairStore(prepared), PairStore(tmp_path / "again")
    assert [pair.scene for pair in after.pairs] == [pair.scene for pair in before.pairs]
    for index in range(len(SHIFTS)):
        height, width = before.size(index)
        assert after.size(index) == (height, width)
        for box in ((0, 0, height, width), (4, 6, 12, 16), (height - 10, width - 8, 10, 8)):
            old, new = before.crop(index, *box), after.crop(index, *box)
            assert torch.equal(new.noisy, old.noisy)
            assert torch.equal(new.mask, old.mask)
            torch.testing.assert_close(new.target, old.target, rtol=1e-3, atol=1e-6)  # of half floats
        kept = ("camera", "f_iso", "raw_gain", "f_noise_a", "rgb_msssim", "flags", "xyz_to_camera")
        assert all(getattr(before.pairs[index], name) == getattr(after.pairs[index], name) for name in kept)


def test_what_came_in_goes_out_the_same(prepared: Path, tmp_path: Path):
    first = export_npz(prepared, tmp_path / "npz")
    import_npz(tmp_path / "npz", tmp_path / "again")
    second = export_npz(tmp_path / "again", tmp_path / "npz2")
    assert [path.name for path in first] == [path.name for path in second]
    for one, two in zip(first, second, strict=True):
        with np.load(one) as a, np.load(two) as b:
            assert a.files == b.files
            for key in set(a.files) - {"facts"}:
                assert np.array_equal(a[key], b[key], equal_nan=True), key


def test_exporting_again_makes_nothing_anew(prepared: Path, tmp_path: Path):
    times = [path.stat().st_mtime_ns for path in export_npz(prepared, tmp_path / "npz")]
    assert [path.stat().st_mtime_ns for path in export_npz(prepared, tmp_path / "npz")] == times


def test_the_example_of_the_contract_runs_with_numpy_alone(prepared: Path, tmp_path: Path):
    path = export_npz(prepared, tmp_path / "npz")[2]
    (code,) = re.findall(r"```python\n(.*?)```", CONTRACT.read_text(), flags=re.DOTALL)
    code = code.replace("scene/0123456789abcdef-fedcba9876543210.npz", str(path))
    code += "\nimport sys\nassert not {'torch', 'library', 'ray'} & set(sys.modules)"
    code += "\nprint(json.dumps({'scene': facts['scene'], 'mean': float(noisy.mean() / facts['raw_gain']), "
    code += "'clean': float(clean[..., 1].mean()), 'green': float(linear[::2, 1::2].mean())}))"
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["scene"] == "scene 2"
    # The pair is one scene seen twice, so green is as bright in both.
    assert said["green"] == pytest.approx(said["clean"], rel=0.02)


def test_the_contract_names_every_key_of_a_file(prepared: Path, tmp_path: Path):
    with np.load(export_npz(prepared, tmp_path / "npz")[0]) as file:
        documented = set(re.findall(r"^\| `(\w+)`", CONTRACT.read_text(), flags=re.MULTILINE))
        assert set(file.files) == documented


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": np.int64(9)}, "version is 9"),
        ({"mask": None}, "lacks mask"),
        ({"mask": np.ones((4, 4), np.uint8)}, "mask is uint8 of 2 dimensions, and should be bool of 2"),
        ({"noisy": np.ones((4, 4), np.float64)}, "noisy is float64"),
        ({"mask": np.ones((4, 4), bool)}, "different or odd sizes"),
    ],
)
def test_a_file_that_breaks_the_contract_is_named_with_its_key(
    prepared: Path, tmp_path: Path, change: dict[str, np.ndarray | None], words: str
):
    path = export_npz(prepared, tmp_path / "npz")[0]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | change
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=words) as refused:
        import_npz(tmp_path / "npz", tmp_path / "again")
    assert str(path) in str(refused.value)
    assert not (tmp_path / "again" / "index.parquet").exists()


def test_a_broken_file_and_an_empty_folder_are_refused(prepared: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no \.npz files"):
        import_npz(tmp_path / "nothing", tmp_path / "again")
    path = export_npz(prepared, tmp_path / "npz")[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is no NPZ file"):
        import_npz(tmp_path / "npz", tmp_path / "again")
    with pytest.raises(DataError, match="is a prepared folder already"):
        import_npz(tmp_path / "npz", prepared)


def test_pictures_of_x_trans_go_out_and_in_too(tmp_path: Path):
    folder = tmp_path / "prepared"
    pair = write_pair(folder, (1, 4), name="x", stored=True)
    rgb = np.random.default_rng(0).random((44, 52, 3)).astype(np.float16)
    np.save(folder / picture_file("x", pair.f_sha256), rgb)
    pair = of_pictures(pair, xyz_to_camera=None)
    np.save(folder / pair.mask, pack_mask(np.ones((pair.overlap.height, pair.overlap.width), bool)))
    write_index(folder, [pair])
    store = PairStore(folder)
    height, width = store.size(0)
    assert height % 2 == 1
    height -= 1
    export_npz(folder, tmp_path / "npz")
    import_npz(tmp_path / "npz", tmp_path / "again")
    again = PairStore(tmp_path / "again")
    assert torch.equal(again.crop(0, 0, 0, height, width).noisy, store.crop(0, 0, 0, height, width).noisy)
