from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from library.bundle import Bundle
from library.errors import BundleError, ConfigError
from library.export.dtmodel import export_dtmodel
from library.export.dtpackage import read_dtmodel
from library.export.export import export_bundle
from library.inference.backends.onnx import onnx_session


def config_of(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{path.stem}/config.json"))


def test_names_and_order_in_the_archive_are_those_of_the_contract(package_file: Path) -> None:
    with zipfile.ZipFile(package_file) as archive:
        entries = archive.infolist()
        assert archive.testzip() is None
    assert [entry.filename.removeprefix("rawdenoise-small/") for entry in entries] == [
        "config.json",
        "model_bayer.onnx",
        "model_linear.onnx",
        "model_bayer.json",
        "model_bayer.md",
        "model_linear.json",
        "model_linear.md",
    ]
    assert all(entry.filename.startswith("rawdenoise-small/") for entry in entries)
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_DEFLATED}


def test_the_config_is_that_of_the_contract(package_file: Path, naf: Bundle) -> None:
    """Against the contract's own words, not our schema."""
    config = config_of(package_file)
    card = config.pop("model_card")
    assert set(card) == {
        *("long_description", "scope", "author", "source", "paper"),
        *("license", "training_data", "training_data_license", "notes"),
    }
    assert all(isinstance(text, str) and text for text in card.values())
    assert (card["author"], card["license"], card["paper"]) == ("Ada", "CC0-1.0", "not stated")
    assert naf.digest in card["notes"]
    assert config == {
        "id": "rawdenoise-small",
        "name": "small",
        "description": "Raw denoiser small, nafnet",
        "task": "rawdenoise",
        "arch": "nafnet",
        "backend": "onnx",
        "version": "1.0",
        "tiling": True,
        "coreml_format": "mlprogram",
        "attributes": {
            "input_sizes": [128],
            "coreml_cpu_only": False,
            "model_bayer": {
                "input_kind": "bayer_v1",
                "bayer_orientation": "force_rggb",
                "edge_pad": "mirror_cropped",
                "wb_norm": "none",
                "output_scale": "absolute",
            },
            "model_linear": {
                "input_kind": "linear_v1",
                "input_colorspace": "lin_rec2020",
                "wb_norm": "none",
                "output_scale": "absolute",
                "target_mean": "null",
            },
        },
    }


def test_packed_graphs_are_the_bundles_networks(package_file: Path, naf: Bundle, rgb: Bundle) -> None:
    package = read_dtmodel(package_file)
    for stem, bundle, scale in (("model_bayer", naf, 2), ("model_linear", rgb, 1)):
        model = onnx.load_from_string(package.graphs[stem])
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        x = np.random.default_rng(0).normal(0.4, 0.4, (1, bundle.model.in_channels, 128, 128)).astype(np.float32)
        found = onnx_session(package.graphs[stem])(x)
        assert found.shape == (1, 3, scale * 128, scale * 128)
        with torch.no_grad():
            wanted = bundle.model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    with zipfile.ZipFile(package_file) as archive:
        manifest = json.loads(archive.read("rawdenoise-small/model_bayer.json"))
    assert manifest == naf.manifest


def test_one_graph_is_said_to_be_one_and_an_arbitrary_gain_to_be_matched(tiny: Bundle, tmp_path: Path) -> None:
    paths = [tmp_path / folder / "tiny.dtmodel" for folder in "ab"]
    for path in paths:
        export_bundle(tiny.path, path, to="dtmodel", tile=128)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert list(read_dtmodel(paths[0]).graphs) == ["model_bayer"]
    config = config_of(paths[0])
    assert "model_linear" not in config["attributes"]
    assert config["attributes"]["model_bayer"]["output_scale"] == "match_gain"
    assert "it holds no model_linear, so not raws that are demosaiced first" in config["model_card"]["scope"]


def test_what_darktable_would_refuse_is_refused_here(naf: Bundle, rgb: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "x.dtmodel"
    with pytest.raises(ConfigError, match=r"output is x\.zip, but darktable installs files named NAME\.dtmodel"):
        export_dtmodel(naf, tmp_path / "x.zip")
    for tile in (124, 130):
        with pytest.raises(ConfigError, match="must be at least 128 for darktable and a multiple of 4"):
            export_dtmodel(naf, path, tile=tile)
    with pytest.raises(ConfigError, match="id: "):
        export_dtmodel(naf, tmp_path / "not safe.dtmodel")
    with pytest.raises(ConfigError, match="licence: unknown key; did you mean 'license'"):
        export_dtmodel(naf, path, card={"licence": "MIT"})
    with pytest.raises(BundleError, match="takes 3 channels: with `linear`, the first bundle is of a raw denoiser"):
        export_dtmodel(rgb, path, linear=naf)
    assert not list(tmp_path.iterdir())


def test_a_damaged_package_is_not_taken_for_one(package_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(package_file) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = files["rawdenoise-small/config.json"]
    for changed, words in (
        ({"other/config.json": config}, "one folder"),
        ({"rawdenoise-small/config.json": config.replace(b"bayer_v1", b"xtrans_v1")}, "would not read"),
        ({"rawdenoise-small/config.json": config.replace(b'"id": "raw', b'"id": "draw')}, "is of id drawdenoise-small"),
        ({"rawdenoise-small/model_linear.onnx": None}, r"lacks \['model_linear.onnx'\]"),
    ):
        path = tmp_path / "x.dtmodel"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (files | changed).items():
                if content is not None:
                    archive.writestr(name, content)
        with pytest.raises(BundleError, match=words):
            read_dtmodel(path)
    path.write_bytes(package_file.read_bytes()[:-100])
    with pytest.raises(BundleError, match="is no ZIP archive"):
        read_dtmodel(path)
