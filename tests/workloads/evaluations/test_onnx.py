"""ONNX files among the methods of an evaluation, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from library.errors import BundleError
from library.files.dng import write_cfa_dng
from library.files.exr import write_exr
from library.files.metadata import ImageMetadata
from workloads.evaluate import Config, Evaluator, Task

SIDE = 176


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey raw without noise, and a graph that gives each tile its mean."""
    folder = tmp_path_factory.mktemp("onnx")
    grey = 1000 + 40 * np.arange(SIDE)[:, None] + np.zeros((SIDE, SIDE))
    grey[1::2] = grey[::2]  # both lines of a tile alike
    metadata = ImageMetadata(xyz_to_camera=np.eye(3), as_shot_white_balance=np.ones(3))
    black = np.zeros((2, 2))
    write_cfa_dng(folder / "raws/a.dng", grey.astype(np.uint16), cfa="RGGB", black_level=black, white_level=16000,
                  metadata=metadata)  # fmt: skip
    write_exr(folder / "truth/a.exr", np.repeat(grey[..., None] / 16000, 3, axis=2), chromaticities=None)
    weight = np.full((12, 4, 1, 1), 0.25, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "weight"], ["places"]),
            helper.make_node("DepthToSpace", ["places"], ["y"], blocksize=2, mode="CRD"),
        ],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(folder / "mean.onnx"))
    return folder


def config(folder: Path, model: str = "mean.onnx") -> Config:
    suite = {"kind": "pairs", "raws": str(folder / "raws"), "truth": str(folder / "truth")}
    settings = {"onnx": {"mean": str(folder / model)}, "suites": {"s": suite}, "output": str(folder / "out")}
    return Config.model_validate(settings | {"crop": 164, "baselines": []})


def test_a_graph_that_gives_back_what_is_there_has_hardly_an_error(folder: Path):
    evaluator = Evaluator(config(folder).model_dump(mode="json"))
    method = evaluator.methods["mean"]
    assert not method.takes_pictures
    sample = config(folder).suites["s"].samples()[0]
    found = evaluator.process(Task("key", "s", sample, "mean", method.identity))
    assert found is not None
    assert found.metrics["psnr.linear"] > 70  # the truth's half floats
    assert found.megapixels == SIDE * SIDE / 1e6


def test_a_file_that_is_no_graph_is_refused_when_the_evaluation_begins(folder: Path):
    (folder / "text.onnx").write_text("weights")
    with pytest.raises(BundleError, match="is no graph that onnxruntime"):
        Evaluator(config(folder, "text.onnx").model_dump(mode="json"))
