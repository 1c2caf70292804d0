from __future__ import annotations

from pathlib import Path

import pytest
import torch

from library.bundle import Bundle, OutputGain, load_bundle, write_bundle
from library.export.export import export_bundle
from library.models import demosaic, mobile
from library.models.blocks.image_model import ModelConfig


def bundle_of(config: ModelConfig, folder: Path, name: str, gain: OutputGain = "absolute") -> Bundle:
    """With random weights in every layer."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    metrics = {"val/psnr": 1.0}
    write_bundle(folder, model, name=name, training={}, data_digest="none", metrics=metrics, step=1, gain=gain)
    return load_bundle(folder)


@pytest.fixture(scope="session")
def naf(small_bundle: Path) -> Bundle:
    """Of a raw denoiser with two levels and layer norms."""
    return load_bundle(small_bundle)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of a raw denoiser without levels, at an arbitrary gain: the quickest to export."""
    config = mobile.Config(width=4, encoder_blocks=(), decoder_blocks=(), middle_blocks=1)
    return bundle_of(config, tmp_path_factory.mktemp("tiny") / "b", "tiny", gain="arbitrary")


@pytest.fixture(scope="session")
def rgb(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of an RGB denoiser that changes nothing."""
    config = demosaic.Config(in_channels=3, method="identity")
    return bundle_of(config, tmp_path_factory.mktemp("rgb") / "b", "rgb")


@pytest.fixture(scope="session")
def onnx_file(naf: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "naf.onnx"
    exported = export_bundle(naf.path, path, to="onnx")
    assert exported.path == path
    assert 0 <= exported.largest_difference <= exported.tolerance
    assert "opset 20, multiples of 4 px a side" in str(exported)
    return path


@pytest.fixture(scope="session")
def package_file(naf: Bundle, rgb: Bundle, raw_dng: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "rawdenoise-small.dtmodel"
    card = {"author": "Ada", "license": "CC0-1.0"}
    exported = export_bundle(naf.path, path, to="dtmodel", tile=128, linear=rgb.path, card=card, raw=raw_dng)
    assert "model_bayer and model_linear, ONNX opset 20, 128 px a side; darktable's tiles against" in str(exported)
    return path
