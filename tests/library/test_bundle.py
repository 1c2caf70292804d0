from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from library.bundle import golden_inputs, load_bundle, pack_bundle, write_bundle
from library.errors import BundleError
from library.models import nafnet, unet
from library.models.blocks.image_model import ImageModel

FILES = ("manifest.json", "model.safetensors", "golden.safetensors", "README.md")


def trained_like(model: ImageModel) -> ImageModel:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write(folder: Path, model: ImageModel | None = None, **changes: Any) -> Path:
    facts: dict[str, Any] = {
        "name": "test",
        "training": {"optim": {"lr": 1e-3}},
        "data_digest": "of the scenes",
        "metrics": {"val/psnr": 31.5},
        "step": 7,
    }
    torch.manual_seed(0)
    write_bundle(folder, model or trained_like(nafnet.Config(width=2).build()), **facts | changes)
    return folder


def sign(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> Path:
    """What a forger would do: change the manifest and make every hash in it right again."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    for name in manifest["sha256"]:
        manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest.pop("digest", None)

    def text() -> str:
        return json.dumps(manifest, indent=2, sort_keys=True) + "\n"

    manifest["digest"] = hashlib.sha256(text().encode()).hexdigest()
    (folder / "manifest.json").write_text(text())
    return folder


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


# --- whole bundles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [nafnet.Config(width=2), unet.Config(funit=1), unet.Config(funit=1, in_channels=3, head="plain")]
)
def test_a_model_comes_back_bit_for_bit(config: Any, tmp_path: Path):
    model = trained_like(config.build()).train()
    loaded = load_bundle(write(tmp_path / "bundle", model)).model
    assert loaded.config == config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    x = golden_inputs(model.in_channels, model.lattice)[:1].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        published = model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        assert torch.equal(loaded(x), published(x))


def test_writing_leaves_the_model_as_it_was(tmp_path: Path):
    model = trained_like(nafnet.Config(width=2).build()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(tmp_path / "bundle", model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_manifest_says_what_inference_and_people_need(tmp_path: Path):
    manifest = load_bundle(write(tmp_path / "bundle")).manifest
    assert manifest["name"] == "test"
    assert manifest["model"] == nafnet.Config(width=2).model_dump(mode="json")
    assert manifest["training"] == {"optim": {"lr": 1e-3}}
    assert (manifest["step"], manifest["data_digest"]) == (7, "of the scenes")
    assert manifest["metrics"] == {"val/psnr": 31.5}
    assert manifest["geometry"] == {"halo": 20, "lattice": 4, "reach": 19}
    assert (manifest["input"]["planes"], manifest["output"]["space"]) == ("R, G1, G2, B", "camera_rgb")
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["sha256"]) == set(FILES) - {"manifest.json"}
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "| val/psnr | 31.5 |" in card
    assert "# test\n" in card


def test_the_same_content_has_the_same_digest_and_other_content_another(tmp_path: Path):
    digests = [
        load_bundle(write(tmp_path / str(number), **changes)).digest
        for number, changes in enumerate([{}, {}, {"step": 8}, {"name": "other"}, {"metrics": {"val/psnr": 31.4}}])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    # Another weight, by the smallest step there is.
    model = trained_like(nafnet.Config(width=2).build())
    with torch.no_grad():
        model.head.bias[0] = torch.nextafter(model.head.bias[0], torch.tensor(9.0))
    assert load_bundle(write(tmp_path / "weight", model)).digest not in digests


def test_a_newer_bundle_replaces_an_older_one(tmp_path: Path):
    write(tmp_path / "bundle", step=1)
    (tmp_path / "bundle" / "leftover").write_text("")
    write(tmp_path / "bundle", step=2)
    assert load_bundle(tmp_path / "bundle").manifest["step"] == 2
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == sorted(FILES)


def test_golden_inputs_are_the_same_everywhere_and_look_like_exposures():
    tiles = golden_inputs(4, 16)
    assert torch.equal(tiles, golden_inputs(4, 16))
    assert tiles.shape == (4, 4, 64, 64)
    assert golden_inputs(3, 24).shape[-1] % 24 == 0
    assert tiles.min() < 0
    assert tiles.max() == 1
    means = tiles.mean(dim=(1, 2, 3))
    assert means[3] > means[0] > 4 * means[1] > 16 * means[2]


# --- zipped -----------------------------------------------------------------------------------------------------------


def test_a_zip_is_the_same_bundle_and_has_the_same_bytes_every_time(small_bundle: Path, tmp_path: Path):
    for name in ("a.zip", "b.zip"):
        pack_bundle(small_bundle, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    zipped, folder = load_bundle(tmp_path / "a.zip"), load_bundle(small_bundle)
    assert zipped.manifest == folder.manifest
    x = torch.rand(1, 4, 16, 16)
    assert torch.equal(zipped.model(x), folder.model(x))


def test_a_zip_unpacked_by_other_tools_is_the_bundle_again(small_bundle: Path, tmp_path: Path):
    pack_bundle(small_bundle, tmp_path / "a.zip")
    shutil.unpack_archive(tmp_path / "a.zip", tmp_path / "unpacked")
    assert load_bundle(tmp_path / "unpacked").digest == load_bundle(small_bundle).digest
    pack_bundle(tmp_path / "unpacked", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path):
    (bundle / "README.md").write_text("")
    with pytest.raises(BundleError):
        pack_bundle(bundle, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_a_changed_byte_of_a_zip_is_noticed_or_harmless(tmp_path: Path):
    """Some bytes, such as times, say nothing about the content; whatever is loaded, is the bundle."""
    digest = load_bundle(write(tmp_path / "bundle")).digest
    pack_bundle(tmp_path / "bundle", tmp_path / "a.zip")
    whole = (tmp_path / "a.zip").read_bytes()
    positions = {*range(60), *range(len(whole) - 300, len(whole)), *range(0, len(whole), len(whole) // 40)}
    damaged_file = tmp_path / "damaged.zip"
    refused = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        damaged_file.write_bytes(damaged)
        try:
            assert load_bundle(damaged_file).digest == digest
        except BundleError:
            refused += 1
    assert refused > 100


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_anywhere_is_noticed(bundle: Path, name: str):
    file = bundle / name
    whole = file.read_bytes()
    accepted = []
    for position in sorted({round(i * (len(whole) - 1) / 39) for i in range(40)}):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        file.write_bytes(damaged)
        try:
            load_bundle(bundle)
            accepted.append(position)
        except BundleError:
            continue
    assert accepted == []
    file.write_bytes(whole)
    load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_noticed(bundle: Path, name: str):
    file = bundle / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"copy the bundle again|is damaged"):
        load_bundle(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing" if name != "manifest.json" else "holds no manifest"):
        load_bundle(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5", "{}", '"text"', '{"format_version": null}'])
def test_a_manifest_that_is_none_is_refused(bundle: Path, content: str):
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(BundleError):
        load_bundle(bundle)


def test_a_file_the_manifest_does_not_know_is_refused_and_hidden_ones_are_not_looked_at(bundle: Path):
    (bundle / ".DS_Store").write_bytes(b"\0")
    load_bundle(bundle)
    (bundle / "extra.bin").write_bytes(b"\0")
    with pytest.raises(BundleError, match=r"holds extra\.bin, which the manifest does not know"):
        load_bundle(bundle)


def test_another_format_version_says_which(bundle: Path):
    sign(bundle, lambda manifest: manifest.update(format_version=2))
    with pytest.raises(BundleError, match="has format version 2, and this stillgrain reads 1"):
        load_bundle(bundle)


def test_a_path_without_a_bundle_says_what_is_wanted(tmp_path: Path):
    with pytest.raises(BundleError, match="does not exist; give the path of a bundle folder"):
        load_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"holds no manifest\.json, so it is not a bundle"):
        load_bundle(tmp_path)
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(BundleError, match="is neither a bundle folder nor a zip of one"):
        load_bundle(tmp_path / "text")


# --- what proves itself wrong -----------------------------------------------------------------------------------------


def test_golden_tiles_that_are_not_reproduced_are_refused_and_rounding_is_not(bundle: Path):
    golden = safetensors.torch.load_file(bundle / "golden.safetensors")
    for drift, accepted in ((1e-6, True), (1e-3, False), (float("nan"), False)):
        drifted = golden["output"].clone()
        drifted[2, 1, 5, 7] += drift
        safetensors.torch.save_file({"input": golden["input"], "output": drifted}, bundle / "golden.safetensors")
        sign(bundle)
        if accepted:
            load_bundle(bundle)
        else:
            with pytest.raises(
                BundleError, match=r"does not reproduce its golden tiles on this machine: they differ by"
            ):
                load_bundle(bundle)


def test_weights_exchanged_for_others_do_not_reproduce_the_golden_tiles(bundle: Path, tmp_path: Path):
    weights = safetensors.torch.load_file(bundle / "model.safetensors")
    weights["intro.weight"] = weights["intro.weight"] * 1.5
    safetensors.torch.save_file(weights, bundle / "model.safetensors")
    sign(bundle)
    with pytest.raises(BundleError, match="does not reproduce its golden tiles"):
        load_bundle(bundle)


def test_a_model_that_this_version_does_not_have_is_refused(bundle: Path):
    sign(bundle, lambda manifest: manifest["model"].update(kind="transformer"))
    with pytest.raises(
        BundleError, match="is of a model that this stillgrain does not have: unknown kind 'transformer'"
    ):
        load_bundle(bundle)
    sign(bundle, lambda manifest: manifest["model"].update(kind="nafnet", depth=3))
    with pytest.raises(BundleError, match="is of a model that this stillgrain does not have"):
        load_bundle(bundle)


def test_weights_of_another_model_are_refused(bundle: Path):
    sign(bundle, lambda manifest: manifest["model"].update(width=6))
    with pytest.raises(BundleError, match=r"model\.safetensors does not fit the model of the manifest"):
        load_bundle(bundle)


# --- pickles ----------------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a folder as soon as it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_are_refused_without_being_opened(bundle: Path, tmp_path: Path, zipped: bool):
    crater = tmp_path / "crater"
    pickle = tmp_path / "model.pt"
    torch.save({"weights": Bomb(crater)}, pickle, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BundleError, match="pickle"):
        load_bundle(pickle)

    shutil.copy(pickle, bundle / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file that was written"):
        load_bundle(bundle)
    sign(bundle)
    with pytest.raises(BundleError, match=r"model\.safetensors is not in safetensors format .* never opened"):
        load_bundle(bundle)
    assert not crater.exists()


def test_a_zip_with_paths_that_lead_out_of_it_writes_nothing(small_bundle: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in FILES:
            archive.writestr(name, (small_bundle / name).read_bytes())
        archive.writestr("../escaped", "")
    with pytest.raises(BundleError, match="which the manifest does not know"):
        load_bundle(tmp_path / "a.zip")
    assert not (tmp_path.parent / "escaped").exists()
