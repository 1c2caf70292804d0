from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from library.bundle import load_bundle
from library.codec_bundle import CodecBundle, golden_conditions, load_codec, write_codec_bundle
from library.codecs import balle_manypriors, rawcodec
from library.codecs.rawcodec import RawCodec
from library.entropy.tables import gaussian_tables
from library.errors import BundleError
from library.models.blocks.codec import CodecModel
from library.models.blocks.latent_coding import decode_tiles, encode_tiles
from library.sealed import pack_sealed

FILES = ["README.md", "entropy.safetensors", "golden.safetensors", "manifest.json", "model.safetensors"]
SMALL = rawcodec.Config(width=8, latents=8, hyper_latents=4, encoder_blocks=2, decoder_blocks=2)


def random_codec(seed: int = 0) -> RawCodec:
    """A codec whose weights are all random, so that every layer takes part in the result."""
    torch.manual_seed(seed)
    model = SMALL.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def written(folder: Path, model: CodecModel, **changes: Any) -> CodecBundle:
    told = {"name": "small", "training": {"steps": 1}, "data_digest": "d", "metrics": {"val/loss": 1.0}, "step": 1}
    return write_codec_bundle(folder, model, **{**told, **changes})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec") / "bundle"
    written(folder, random_codec())
    return folder


@pytest.fixture
def bundle(small: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "bundle"))


def resealed(bundle: Path, **changes: Any) -> Path:
    """The manifest changed by somebody who makes all hashes right again."""
    manifest = json.loads((bundle / "manifest.json").read_text()) | changes
    manifest["sha256"] = {f: hashlib.sha256((bundle / f).read_bytes()).hexdigest() for f in manifest["sha256"]}
    del manifest["digest"]
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return bundle


def with_weights(bundle: Path, tmp_path: Path, **added: float) -> Path:
    """Weights with something added to some, under a manifest that says that they belong."""
    model = load_codec(bundle).model
    with torch.no_grad():
        for name, value in added.items():
            model.get_parameter(name.replace("__", ".")).add_(value)
    digest = written(tmp_path / "other", model).manifest["codec_digest"]
    shutil.copy(tmp_path / "other" / "model.safetensors", bundle)
    return resealed(bundle, codec_digest=digest)


def test_a_bundle_gives_back_model_and_tables_bit_for_bit(tmp_path: Path) -> None:
    model = random_codec(3)
    returned = written(tmp_path / "b", model)
    loaded = load_codec(tmp_path / "b")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)
    assert loaded.tables.digest == returned.tables.digest == model.frequency_tables().digest
    assert loaded.digest == returned.digest
    assert loaded.model.config == model.config
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert (loaded.name, loaded.manifest["training"], loaded.manifest["step"]) == ("small", {"steps": 1}, 1)


def test_what_the_model_coded_before_the_bundle_decodes_after_it(tmp_path: Path) -> None:
    model = random_codec(4).eval()
    x = torch.rand(1, 4, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model.analyze(x, golden_conditions())
    coded = encode_tiles(model, model.frequency_tables(), y, golden_conditions())
    loaded = written(tmp_path / "b", model)
    ours = decode_tiles(model, model.frequency_tables(), coded.streams, 8, 12, golden_conditions())
    theirs = decode_tiles(loaded.model, loaded.tables, coded.streams, 8, 12, golden_conditions())
    assert torch.equal(ours, theirs)
    assert ours.any()


def test_it_says_what_a_consumer_must_know(small: Path) -> None:
    loaded = load_codec(small)
    manifest = loaded.manifest
    assert manifest["type"] == "codec"
    assert manifest["input"]["planes"] == "R, G1, G2, B"
    assert manifest["output"] == {"channels": 3, "space": "camera_rgb", "scale": 2}
    assert manifest["num_qualities"] == 64
    assert manifest["geometry"]["lattice"] % manifest["geometry"]["stride"] == 0
    assert manifest["tables_sha256"] == loaded.tables.digest
    assert manifest.keys() >= {"levels", "metrics", "versions", "git_commit", "data_digest", "macs_per_pixel"}
    assert len(loaded.codec_digest) == 16
    assert "A rawcodec codec trained by Stillgrain" in (small / "README.md").read_text(encoding="utf-8")


def test_a_codec_of_pictures_and_one_of_a_single_rate_are_bundles_as_any_other(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for config in (
        SMALL.model_copy(update={"in_channels": 3}),
        balle_manypriors.Config(hidden=8, latents=8, num_priors=4),
    ):
        loaded = written(tmp_path / "b", config.build())
        assert loaded.model.config == config
        assert loaded.manifest["num_qualities"] == config.num_qualities
        assert loaded.manifest["output"]["space"] == ("lin_rec2020" if config.in_channels == 3 else "camera_rgb")


def test_tables_that_are_given_are_those_of_the_bundle(tmp_path: Path) -> None:
    """A codec of many tables takes a second to make them, and its rate was checked with them before."""
    model = random_codec()
    assert (
        written(tmp_path / "a", model, tables=model.frequency_tables()).digest == written(tmp_path / "b", model).digest
    )
    other = gaussian_tables(np.geomspace(0.11, 70, 64))
    assert load_codec(written(tmp_path / "c", model, tables=other).path).tables.digest == other.digest


def test_the_codecs_digest_names_weights_and_config_and_nothing_else(tmp_path: Path) -> None:
    first, same, renamed = (
        written(tmp_path / "b", random_codec(), **changes)
        for changes in ({}, {}, {"name": "other", "step": 9, "metrics": {"val/loss": 2.0}})
    )
    assert first.digest == same.digest != renamed.digest
    assert first.codec_digest == same.codec_digest == renamed.codec_digest
    model, digests = random_codec(), {first.codec_digest}
    for path in ("stem.weight", "hyper_head.layer.bias", "synthesis_shortcut.bias"):
        with torch.no_grad():
            model.get_parameter(path).view(-1)[0].add_(1e-3)
        digests.add(written(tmp_path / "b", model).codec_digest)
    digests.add(written(tmp_path / "b", SMALL.model_copy(update={"gain_range": (1.0, 25.0)}).build()).codec_digest)
    assert len(digests) == 5


def test_a_zip_of_it_is_the_same_bundle(small: Path, tmp_path: Path) -> None:
    pack_sealed(small, tmp_path / "b.zip")
    assert load_codec(tmp_path / "b.zip").digest == load_codec(small).digest


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere_is_refused(bundle: Path, file: str) -> None:
    whole = (bundle / file).read_bytes()
    rng = np.random.default_rng(0)
    for position in {0, len(whole) - 1, *rng.integers(len(whole), size=12).tolist()}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (bundle / file).write_bytes(damaged)
        with pytest.raises(BundleError):
            load_codec(bundle)
    (bundle / file).write_bytes(whole)
    load_codec(bundle)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_refused_by_name(bundle: Path, file: str) -> None:
    """Tables too: a decoder that computed its own could differ from the encoder's in one frequency."""
    (bundle / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_codec(bundle)


@pytest.mark.parametrize("file", FILES)
def test_half_a_file_is_refused(bundle: Path, file: str) -> None:
    whole = (bundle / file).read_bytes()
    (bundle / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError):
        load_codec(bundle)


def test_a_file_that_the_manifest_does_not_know_is_refused(bundle: Path) -> None:
    (bundle / "extra.bin").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"extra\.bin, which the manifest does not know"):
        load_codec(bundle)


def test_a_denoisers_bundle_is_no_codecs_and_the_other_way_round(small_bundle: Path, small: Path) -> None:
    with pytest.raises(BundleError, match="is the bundle of a denoiser, and that of a codec is needed"):
        load_codec(small_bundle)
    with pytest.raises(BundleError, match="is the bundle of a codec, and that of a denoiser is needed"):
        load_bundle(small)


def test_a_codec_that_is_not_here_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="codec that this stillgrain does not have: unknown kind 'dreamcodec'"):
        load_codec(resealed(bundle, model={"kind": "dreamcodec"}))
    with pytest.raises(BundleError, match="codec that this stillgrain does not have"):
        load_codec(resealed(bundle, model={"kind": "rawcodec", "depth": 3}))


def test_weights_of_another_size_are_refused(bundle: Path) -> None:
    model = json.loads((bundle / "manifest.json").read_text())["model"] | {"width": 16}
    with pytest.raises(BundleError, match="does not fit the model of the manifest"):
        load_codec(resealed(bundle, model=model))


@pytest.mark.parametrize("name", ["frequencies", "smallest", "sizes"])
def test_tables_with_a_part_missing_are_refused(bundle: Path, name: str) -> None:
    tables = load_file(bundle / "entropy.safetensors")
    del tables[name]
    save_file(tables, bundle / "entropy.safetensors")
    with pytest.raises(BundleError, match="does not hold the weights and tables of its codec"):
        load_codec(resealed(bundle))


def test_tables_that_are_none_are_refused(bundle: Path) -> None:
    tables = load_file(bundle / "entropy.safetensors")
    tables["frequencies"][5, 0] += 1
    save_file(tables, bundle / "entropy.safetensors")
    with pytest.raises(BundleError, match="table 5 does not sum to 16384"):
        load_codec(resealed(bundle))


def test_tables_of_another_codec_are_refused(bundle: Path) -> None:
    other = gaussian_tables(np.geomspace(0.2, 30, 64))
    stored = {name: torch.from_numpy(np.array(getattr(other, name), np.int32)) for name in ("smallest", "sizes")}
    frequencies = torch.from_numpy(np.array(other.frequencies, np.int32))
    save_file({**stored, "frequencies": frequencies}, bundle / "entropy.safetensors")
    with pytest.raises(BundleError, match="weights or tables are not those of the manifest"):
        load_codec(resealed(bundle))


def test_weights_that_the_manifest_does_not_mean_are_refused(bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    save_file({**weights, "head.bias": weights["head.bias"] + 1e-6}, bundle / "model.safetensors")
    with pytest.raises(BundleError, match="weights or tables are not those of the manifest"):
        load_codec(resealed(bundle))


def test_an_entropy_model_that_does_not_decode_the_golden_streams_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="golden streams"):
        load_codec(with_weights(bundle, tmp_path, hyper_head__layer__bias=1.0))


def test_a_synthesis_that_does_not_give_the_golden_picture_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not reproduce its golden picture on this machine: it differs by"):
        load_codec(with_weights(bundle, tmp_path, head__bias=0.1))


def test_a_difference_of_rounding_in_the_picture_is_not_refused(bundle: Path, tmp_path: Path) -> None:
    load_codec(with_weights(bundle, tmp_path, head__bias=1e-5))


def test_a_bundle_that_is_written_again_replaces_the_old_one_whole(bundle: Path) -> None:
    written(bundle, random_codec(8), name="new")
    assert load_codec(bundle).name == "new"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_a_path_that_does_not_exist_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        load_codec(tmp_path / "gone")
