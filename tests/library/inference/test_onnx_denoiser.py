from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from library.errors import BundleError, ConfigError
from library.files.raw import RawImage
from library.inference.onnx_denoiser import OnnxDenoiser, check_onnxruntime
from library.ops.cfa import BAYER_PHASES, mirror_pad, pack_cfa, pad_to_rggb, rggb_offset
from library.ops.levels import normalize_levels

HEIGHT, WIDTH, TILE = 150, 171, 160


def write_model(path: Path, weight: np.ndarray, *, side: int | str = "side") -> Path:
    """A convolution from the four planes to the four places of each colour in a 2 x 2 tile.

    weight  (12, 4, k, k): red, green, blue, each at R, G1, G2, B
    """
    outer = [1, weight.shape[1], side, side]
    pad = weight.shape[-1] // 2
    nodes = [
        helper.make_node("Conv", ["packed", "weight"], ["places"], pads=[pad] * 4),
        helper.make_node("DepthToSpace", ["places"], ["rgb"], blocksize=2, mode="CRD"),
    ]
    graph = helper.make_graph(
        nodes,
        "bayer",
        [helper.make_tensor_value_info("packed", TensorProto.FLOAT, outer)],
        [helper.make_tensor_value_info("rgb", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


def demosaic_weight(scale: float = 1.0) -> np.ndarray:
    """Each colour of a tile is all over the tile, green as the mean of both."""
    weight = np.zeros((12, 4, 1, 1))
    for color, planes in enumerate(([0], [1, 2], [3])):
        weight[4 * color : 4 * color + 4, planes] = scale / len(planes)
    return weight


def a_raw(cfa: str = "RGGB") -> RawImage:
    mosaic = np.random.default_rng(0).integers(450, 16000, (HEIGHT, WIDTH)).astype(np.uint16)
    black = np.array([[500.0, 510.0], [520.0, 530.0]], np.float32)
    return RawImage(
        path="a.dng", mosaic=mosaic, cfa=cfa, black_level=black, white_level=16000, decoder="", sha256="", exif={}
    )


def packed(raw: RawImage) -> torch.Tensor:
    """(4, h, w) with its mirrored lines of 8 photosites."""
    mosaic = pad_to_rggb(torch.from_numpy(raw.mosaic), raw.cfa)
    black = torch.from_numpy(np.roll(raw.black_level, rggb_offset(raw.cfa), (0, 1)))
    levels = normalize_levels(mosaic, black, float(raw.white_level))
    return pack_cfa(mirror_pad(mirror_pad(levels, 0, 8, 8), 1, 8, 8))


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_a_graph_that_only_demosaics_gives_the_demosaic(tmp_path: Path, cfa: str):
    raw = a_raw(cfa)
    found = OnnxDenoiser(write_model(tmp_path / "model.onnx", demosaic_weight()), tile=TILE).camera_rgb(raw)
    red, first, second, blue = packed(raw)[:, 4:-4, 4:-4]
    tiles = torch.stack([red, (first + second) / 2, blue])
    dy, dx = rggb_offset(cfa)
    wanted = tiles.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, dy : dy + HEIGHT, dx : dx + WIDTH]
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-6)


def test_tiles_do_not_show_and_borders_are_mirrored(tmp_path: Path):
    weight = np.random.default_rng(1).normal(size=(12, 4, 3, 3)) / 10
    raw = a_raw()
    places = F.conv2d(packed(raw)[None], torch.from_numpy(weight).float(), padding=1)
    wanted = F.pixel_shuffle(places, 2)[..., 8 : 8 + HEIGHT, 8 : 8 + WIDTH]
    for tile, side in ((TILE, "side"), (224, "side"), (TILE, 192)):
        found = OnnxDenoiser(write_model(tmp_path / "model.onnx", weight, side=side), tile=tile).camera_rgb(raw)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_graph_of_arbitrary_gain_takes_its_brightness_from_the_raw(tmp_path: Path):
    path = write_model(tmp_path / "model_bayer.onnx", demosaic_weight(scale=3.0))
    raw = a_raw()
    absolute = OnnxDenoiser(path, tile=TILE)
    model: dict[str, Any] = {"input_kind": "bayer_v1", "wb_norm": "none", "output_scale": "match_gain"}
    (tmp_path / "config.json").write_text(json.dumps({"attributes": {"model_bayer": model}}))
    matched = OnnxDenoiser(path, tile=TILE)
    assert absolute.identity != matched.identity
    picture = matched.camera_rgb(raw)
    # Mean of the four planes to that of the three colours, as the contract has it.
    assert float(picture.mean()) == pytest.approx(float(packed(raw)[:, 4:-4, 4:-4].mean()), rel=1e-2)
    before = absolute.camera_rgb(raw)
    torch.testing.assert_close(picture, before * (picture.mean() / before.mean()))
    (tmp_path / "config.json").write_text(json.dumps({"attributes": {"model_bayer": model | {"wb_norm": "as_shot"}}}))
    with pytest.raises(BundleError, match="wb_norm as_shot, and only bayer_v1 without white balance"):
        OnnxDenoiser(path, tile=TILE)


def test_what_is_no_bayer_model_is_refused_in_words(tmp_path: Path):
    (tmp_path / "text.onnx").write_text("weights")
    with pytest.raises(BundleError, match="is no graph that onnxruntime"):
        OnnxDenoiser(tmp_path / "text.onnx", tile=TILE)
    with pytest.raises(BundleError, match="cannot be read"):
        OnnxDenoiser(tmp_path / "none.onnx", tile=TILE)
    rgb = write_model(tmp_path / "rgb.onnx", np.ones((12, 3, 1, 1)))
    with pytest.raises(BundleError, match=r"takes tensor\(float\) \[1, 3, .*takes one float32 \(1, 4,"):
        OnnxDenoiser(rgb, tile=TILE)
    small = write_model(tmp_path / "small.onnx", demosaic_weight(), side=128)
    with pytest.raises(BundleError, match="takes tiles of"):
        OnnxDenoiser(small, tile=TILE)
    grey = OnnxDenoiser(write_model(tmp_path / "grey.onnx", demosaic_weight()[:4]), tile=TILE)
    with pytest.raises(BundleError, match=r"gives \(1, 1, 320, 320\) for \(1, 4, 160, 160\)"):
        grey.camera_rgb(a_raw())


def test_without_the_package_its_name_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package onnxruntime.*pip install 'stillgrain\[export\]'"):
        check_onnxruntime()
