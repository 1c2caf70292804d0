from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from library.bundle import Bundle
from library.errors import BundleError, ConfigError
from library.export.export import export_bundle
from library.export.onnx import check_onnx, export_onnx
from library.files.raw import read_raw
from library.inference.backends.graph import sized_graph
from library.inference.backends.onnx import onnx_session
from library.inference.denoise import denoise_raw
from library.inference.engine import Engine
from library.inference.onnx_denoiser import OnnxDenoiser
from library.models import demosaic


def network(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return bundle.model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).numpy()


def noise(*shape: int) -> np.ndarray:
    """Around the range of scenes, below black and above white too."""
    return np.random.default_rng(0).normal(0.4, 0.4, shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (16, 7), (33, 2)])
def test_a_file_for_any_size_computes_what_the_network_does(
    naf: Bundle, onnx_file: Path, rows: int, columns: int
) -> None:
    lattice = naf.model.lattice
    x = noise(1, 4, rows * lattice, columns * lattice)
    found = onnx_session(onnx_file.read_bytes())(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, network(naf, x), rtol=0, atol=1e-5)


def test_a_file_for_one_size_computes_what_the_network_does_and_takes_no_other(tiny: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "tiny.onnx"
    assert "39 px a side" in str(export_onnx(tiny, path, tile=39))
    x = noise(1, 4, 39, 39)
    run = onnx_session(path.read_bytes())
    np.testing.assert_allclose(run(x), network(tiny, x), rtol=0, atol=1e-5)
    with pytest.raises(Exception, match="invalid dimensions"):
        run(noise(1, 4, 39, 40))
    (graph_input,), (output,) = (lambda g: (g.input, g.output))(onnx.load(path).graph)
    sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (graph_input, output)]
    assert sizes == [[1, 4, 39, 39], [1, 3, 78, 78]]


def test_a_reader_of_foreign_files_makes_of_it_what_our_engine_makes_of_the_bundle(
    naf: Bundle, onnx_file: Path, raw_dng: Path
) -> None:
    raw = read_raw(raw_dng)
    found = OnnxDenoiser(onnx_file, tile=192).camera_rgb(raw)[0].permute(1, 2, 0).numpy()
    ours = denoise_raw(raw, Engine(naf, tile=96))
    # That reader mirrors around the picture what our engine leaves to the network's own padding.
    border = 2 * naf.model.halo + 2
    inside = (slice(border, -border), slice(border, -border))
    assert found[inside].size > 1000
    np.testing.assert_allclose(found[inside], ours[inside], rtol=0, atol=1e-5)


def test_a_file_says_what_it_is_and_nothing_of_the_machine_that_made_it(naf: Bundle, onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("input", "output")
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert dims == [[1, 4, "height", "width"]]
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["stillgrain.bundle_digest"] == naf.digest
    assert (said["stillgrain.halo"], said["stillgrain.lattice"]) == (str(naf.model.halo), str(naf.model.lattice))
    assert said["stillgrain.model_card"].startswith("# small\n")
    assert json.loads(said["stillgrain.contract"])["input"] == naf.manifest["input"]
    content = onnx_file.read_bytes()
    for trace in (b"site-packages", str(Path(__file__).parents[3]).encode(), b"forward"):
        assert trace not in content


def test_an_altered_weight_is_refused(naf: Bundle, onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    assert check_onnx(naf, model.SerializeToString(), None) <= 1e-5
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(weight).copy()
    changed.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    with pytest.raises(BundleError, match="does not reproduce the bundle's golden tiles: they differ by"):
        check_onnx(naf, model.SerializeToString(), None)


def test_a_graph_that_is_no_graph_is_refused(naf: Bundle, onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    model.graph.node[0].op_type = "Convolution"
    with pytest.raises(BundleError, match="not valid"):
        check_onnx(naf, model.SerializeToString(), None)


def test_a_size_that_a_node_remembers_is_found_by_the_check(naf: Bundle, onnx_file: Path) -> None:
    """Networks are traced at one size and their sides freed."""
    model = onnx.load(onnx_file)
    size = numpy_helper.from_array(np.array([1, 3, 64, 80]), "size")
    model.graph.initializer.append(size)
    last = model.graph.node[-1]
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Reshape", ["before", "size"], ["output"]))
    with pytest.raises(BundleError, match="ONNX"):
        check_onnx(naf, model.SerializeToString(), None)


class Undecided(demosaic.Demosaic):
    """Looks at values to choose what to compute, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_what_cannot_be_exported_is_refused_in_words_and_leaves_no_file(tmp_path: Path, tiny: Bundle) -> None:
    undecided = replace(tiny, model=Undecided(demosaic.Config()).eval())
    with pytest.raises(BundleError, match="has no ONNX form: PyTorch's exporter cannot express"):
        export_onnx(undecided, tmp_path / "out" / "x.onnx")
    with pytest.raises(ConfigError, match="tile is 0, but must be a multiple of the bundle's lattice, 1"):
        export_onnx(tiny, tmp_path / "out" / "x.onnx", tile=0)
    with pytest.raises(ConfigError, match="leave them out for onnx"):
        export_bundle(tiny.path, tmp_path / "out" / "x.onnx", to="onnx", card={"author": "Ada"})
    assert not (tmp_path / "out").exists()


def test_sides_are_set_in_a_copy(naf: Bundle, onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    before = model.SerializeToString(deterministic=True)
    fixed = sized_graph(naf, model, 64)
    assert model.SerializeToString(deterministic=True) == before
    assert sized_graph(naf, fixed, None).SerializeToString(deterministic=True) == before
    with pytest.raises(ConfigError, match="multiple of the bundle's lattice, 4"):
        sized_graph(naf, model, 66)


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime", "openvino"])
def test_a_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny: Bundle, tmp_path: Path, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs the package {name},.*pip install 'stillgrain\[export\]'"):
        export_bundle(tiny.path, tmp_path / "out", to="openvino" if name == "openvino" else "onnx")
    assert not (tmp_path / "out").exists()
