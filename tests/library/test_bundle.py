from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from library.bundle import OutputGain, golden_inputs, load_bundle, write_bundle
from library.codec_bundle import pack_bundle
from library.errors import BundleError
from library.inference.verify import verify_tiling
from library.models import demosaic, nafnet
from library.ops.cfa import unpack_cfa
from library.ops.demosaic import demosaic_malvar

FILES = ["README.md", "golden.safetensors", "manifest.json", "model.safetensors"]


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def resealed(bundle: Path, **changes: Any) -> Path:
    """The manifest changed by somebody who makes all hashes right again."""
    import hashlib

    manifest = json.loads((bundle / "manifest.json").read_text()) | changes
    manifest["sha256"] = {f: hashlib.sha256((bundle / f).read_bytes()).hexdigest() for f in manifest["sha256"]}
    del manifest["digest"]
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return bundle


def test_a_bundle_gives_back_the_model_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nafnet.Config(width=4).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    write_bundle(
        tmp_path / "b", model, name="b", training={"steps": 1}, data_digest="d", metrics={"val/psnr": 1}, step=1
    )
    loaded = load_bundle(tmp_path / "b")
    x = torch.rand(1, 4, 16, 24).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model.to(memory_format=torch.channels_last)(x))  # pyright: ignore[reportCallIssue]
    assert loaded.manifest["training"] == {"steps": 1}
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_it_says_what_a_consumer_must_know(small_bundle: Path) -> None:
    manifest = load_bundle(small_bundle).manifest
    assert manifest["input"]["planes"] == "R, G1, G2, B"
    assert manifest["output"] == {"channels": 3, "space": "camera_rgb", "scale": 2, "gain": "absolute"}
    assert manifest["geometry"]["halo"] % manifest["geometry"]["lattice"] == 0
    assert manifest.keys() >= {"levels", "metrics", "versions", "git_commit", "data_digest", "num_parameters"}


def test_it_says_whose_brightness_the_output_has_in_the_manifest_and_on_the_card(tmp_path: Path) -> None:
    model = nafnet.Config(width=4).build()
    loaded = {}
    for gain in get_args(OutputGain):
        folder = tmp_path / gain
        write_bundle(folder, model, name="b", training={}, data_digest="d", metrics={}, step=1, gain=gain)
        loaded[gain] = load_bundle(folder)
        assert loaded[gain].gain == loaded[gain].manifest["output"]["gain"] == gain
        assert f"camera_rgb out, {'absolute' if gain == 'absolute' else 'at an arbitrary'}" in (
            folder / "README.md"
        ).read_text(encoding="utf-8")
    # The golden tiles are the network's own output, whatever is made of it.
    golden = [(tmp_path / gain / "golden.safetensors").read_bytes() for gain in loaded]
    assert golden[0] == golden[1]
    assert loaded["absolute"].digest != loaded["arbitrary"].digest


def test_a_gain_that_is_unknown_here_is_refused(bundle: Path) -> None:
    output = json.loads((bundle / "manifest.json").read_text())["output"] | {"gain": "white_at_203_nits"}
    with pytest.raises(BundleError, match="output gain of 'white_at_203_nits', and this stillgrain knows absolute and"):
        load_bundle(resealed(bundle, output=output))


def test_the_same_content_has_the_same_digest_and_other_weights_another(tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = nafnet.Config(width=4).build()
        write_bundle(tmp_path / "b", model, name="b", training={}, data_digest="d", metrics={}, step=1)
        digests.append(load_bundle(tmp_path / "b").digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_zip_of_it_is_the_same_bundle_and_always_the_same_bytes(small_bundle: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        pack_bundle(small_bundle, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert load_bundle(tmp_path / "one.zip").digest == load_bundle(small_bundle).digest


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere_is_refused(bundle: Path, file: str) -> None:
    whole = (bundle / file).read_bytes()
    rng = np.random.default_rng(0)
    for position in {0, len(whole) - 1, *rng.integers(len(whole), size=12).tolist()}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (bundle / file).write_bytes(damaged)
        with pytest.raises(BundleError):
            load_bundle(bundle)
    (bundle / file).write_bytes(whole)
    load_bundle(bundle)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused_by_name(bundle: Path, file: str) -> None:
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_bundle(bundle)


def test_a_file_that_the_manifest_does_not_know_is_refused(bundle: Path) -> None:
    (bundle / "extra.bin").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"extra\.bin, which the manifest does not know"):
        load_bundle(bundle)


def test_an_unknown_format_version_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has format version 99, and this stillgrain reads 1"):
        load_bundle(resealed(bundle, format_version=99))


def test_a_model_that_is_not_here_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"model that this stillgrain does not have: unknown kind 'dreamnet'"):
        load_bundle(resealed(bundle, model={"kind": "dreamnet"}))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def test_pickled_weights_are_refused_in_words_and_never_opened(bundle: Path, tmp_path: Path) -> None:
    torch.save({"weights": Trap(tmp_path / "sprung")}, bundle / "model.safetensors")
    with pytest.raises(BundleError, match="pickled weights are never opened"):
        load_bundle(resealed(bundle))
    torch.save({"weights": Trap(tmp_path / "sprung")}, tmp_path / "weights.pt")
    with pytest.raises(BundleError, match="is a pickle"):
        load_bundle(tmp_path / "weights.pt")
    assert not (tmp_path / "sprung").exists()


def test_weights_that_do_not_give_the_golden_tiles_are_refused(bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 0.1}, bundle / "model.safetensors")
    with pytest.raises(BundleError, match="does not reproduce its golden tiles"):
        load_bundle(resealed(bundle))


def test_what_is_no_bundle_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "b")
    for path, reason in (("gone", "does not exist"), ("notes.txt", "neither"), ("other.zip", "holds no manifest.json")):
        with pytest.raises(BundleError, match=reason):
            load_bundle(tmp_path / path)


def test_a_bundle_that_is_written_again_replaces_the_old_one_whole(bundle: Path) -> None:
    model = nafnet.Config(width=4).build()
    write_bundle(bundle, model, name="new", training={}, data_digest="d", metrics={}, step=2)
    assert load_bundle(bundle).name == "new"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_a_model_without_weights_is_a_bundle_as_any_other(tmp_path: Path) -> None:
    """The demosaic alone, as a baseline for whatever takes a bundle."""
    model = demosaic.Config(method="malvar").build()
    folder = tmp_path / "baseline"
    write_bundle(folder, model, name="baseline", training={}, data_digest="none", metrics={}, step=0)
    bundle = load_bundle(folder)
    assert bundle.manifest["num_parameters"] == 0
    packed = torch.rand(1, 4, 16, 24)
    assert torch.equal(
        bundle.model(packed), demosaic_malvar(unpack_cfa(packed))
    )  # nothing is learned, so nothing differs
    assert verify_tiling(bundle).exact


def test_a_bundle_from_before_there_was_a_choice_of_white_level_knows_the_decoders(tmp_path: Path):
    model = nafnet.Config(width=4).build()
    write_bundle(tmp_path / "b", model, name="old", training={}, data_digest="d", metrics={}, step=1)
    bundle = load_bundle(tmp_path / "b")
    assert bundle.white_level == bundle.manifest["levels"]["white"] == "decoder"
    old = {**bundle.manifest, "levels": {**bundle.manifest["levels"], "white": "one level, from the decoder (LibRaw)"}}
    assert replace(bundle, manifest=old).white_level == "decoder"


def test_a_bundle_says_the_white_level_of_the_data_it_was_trained_on(tmp_path: Path):
    model = nafnet.Config(width=4).build()
    training = {"dataset": {"kind": "synthetic", "white_level": "minimum"}}
    write_bundle(tmp_path / "b", model, name="new", training=training, data_digest="d", metrics={}, step=1)
    assert load_bundle(tmp_path / "b").white_level == "minimum"


def test_golden_inputs_of_cfa_planes_are_bayer_and_x_trans():
    tiles = golden_inputs(5, 8)
    assert tiles.shape == (4, 5, 64, 64)
    assert (tiles[:, 1:4].sum(1) == 1).all()
    periods = [2 if torch.equal(tile[1:4, 2:], tile[1:4, :-2]) else 6 for tile in tiles]
    assert periods == [2, 6, 2, 6]
