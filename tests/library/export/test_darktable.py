from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from library.bundle import Bundle
from library.errors import BundleError
from library.export.darktable import compare_with_engine, denoise_as_darktable
from library.export.dtpackage import Package, read_dtmodel
from library.files.raw import RawImage, read_raw
from library.ops.cfa import BAYER_PHASES, crop_to_rggb


@pytest.fixture
def raw(raw_dng: Path) -> RawImage:
    """Odd sides, four tiles of 128 packed pixels a side and a remainder."""
    rows, columns = np.mgrid[:331, :437]
    wave = np.sin(rows / 11) * np.cos(columns / 13) + 0.5 * (rows + columns > 400)
    noise = np.random.default_rng(0).normal(0, 200, rows.shape)
    mosaic = np.clip(512 + 5000 * (1.2 + wave) + noise, 0, 16383).astype(np.uint16)
    return replace(read_raw(raw_dng), mosaic=mosaic, black_level=np.array([[512.0, 500], [520, 508]], np.float32))


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_a_raw_denoised_in_darktables_way_is_the_engines_inside_of_tiles(
    package_file: Path, naf: Bundle, raw: RawImage, cfa: str
) -> None:
    found = compare_with_engine(read_dtmodel(package_file), naf, replace(raw, cfa=cfa))
    assert found.inside <= 1e-5
    assert found.inside_share > 0.1
    # What the network makes of a tile's border weighs little, but more than rounding.
    assert 1e-4 < found.seams_rms < 0.01 < found.seams < 0.1
    assert "against our engine" in str(found)


def identity(scale: float) -> bytes:
    """A graph that gives each photosite's own sample back, times `scale`, at its own place."""
    places = np.zeros((12, 4, 1, 1), np.float32)
    for color, planes in enumerate(([0], [1, 2], [3])):
        for plane in planes:
            places[4 * color + plane, plane] = scale
    nodes = [
        onnx.helper.make_node("Conv", ["input", "weight"], ["places"]),
        onnx.helper.make_node("DepthToSpace", ["places"], ["output"], blocksize=2, mode="CRD"),
    ]
    ends = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]
        for name, shape in (("input", [1, 4, 128, 128]), ("output", [1, 3, 256, 256]))
    ]
    graph = onnx.helper.make_graph(nodes, "identity", *ends, [numpy_helper.from_array(places, "weight")])
    opset = onnx.helper.make_opsetid("", 20)
    return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_a_graph_that_changes_nothing_gives_the_mosaic_back_through_tiles_and_seams(
    package_file: Path, raw: RawImage, cfa: str
) -> None:
    package = Package(read_dtmodel(package_file).config, {"model_bayer": identity(1.0)})
    found = denoise_as_darktable(package, replace(raw, cfa=cfa), reach=0)
    wanted = crop_to_rggb(torch.from_numpy(raw.mosaic), cfa).numpy()
    np.testing.assert_allclose(found.mosaic, wanted, rtol=0, atol=0.01)
    assert (found.weight == 1).all()


def test_another_graph_in_the_package_is_found_out(
    package_file: Path, naf: Bundle, tiny: Bundle, raw: RawImage
) -> None:
    package = Package(read_dtmodel(package_file).config, {"model_bayer": identity(1.0)})
    with pytest.raises(BundleError, match="and its package differ by"):
        compare_with_engine(package, naf, raw)
    with pytest.raises(BundleError, match="holds no Bayer graph"):
        compare_with_engine(Package(package.config, {}), naf, raw)
    with pytest.raises(BundleError, match="darktable matches tile by tile"):
        compare_with_engine(package, tiny, raw)
