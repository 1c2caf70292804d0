from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from library.bundle import Bundle, golden_inputs, load_bundle, write_bundle
from library.errors import BundleError, ConfigError
from library.files.raw import RawImage, read_raw
from library.inference.backends.base import BackendName
from library.inference.backends.golden import lightness_error
from library.inference.backends.graph import cached_graph
from library.inference.backends.opening import open_backend
from library.inference.backends.packages import package
from library.inference.backends.sized import SizedBackend
from library.inference.denoise import denoise_raw
from library.inference.engine import Engine
from library.inference.verify import verify_tiling
from library.models import mobile

OTHERS: tuple[BackendName, ...] = ("onnx", "openvino")
HAS_BF16 = "BF16" in package("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of this file's own, so that it neither finds nor leaves anything in the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Small, and with random weights in every layer."""
    torch.manual_seed(0)
    model = mobile.Config(width=4, encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=1).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("bundle") / "b"
    write_bundle(folder, model, name="small", training={}, data_digest="none", metrics={}, step=1)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def raw(raw_dng: Path) -> RawImage:
    small = read_raw(raw_dng)
    return replace(small, mosaic=np.tile(small.mosaic, (2, 2))[:251, :303])


@pytest.mark.parametrize("backend", OTHERS)
def test_every_backend_gives_the_picture_of_pytorch(bundle: Bundle, raw: RawImage, backend: BackendName) -> None:
    ours = denoise_raw(raw, Engine(bundle))
    for tile in ("auto", 96):
        engine = Engine(bundle, backend=backend, tile=tile)
        np.testing.assert_allclose(denoise_raw(raw, engine), ours, rtol=0, atol=1e-5)
    assert f"{backend} in fp32 on cpu reproduces the golden tiles within" in str(engine.opened)


@pytest.mark.parametrize("backend", OTHERS)
def test_tiles_of_every_backend_can_be_looked_at_and_are_promised_of_pytorch_alone(
    bundle: Bundle, backend: BackendName
) -> None:
    report = verify_tiling(bundle, backend=backend)
    assert max(check.largest_difference for check in report.checks) < 1e-5
    assert f"{backend} in fp32, whole against tiles" in str(report)
    assert not report.promised
    assert verify_tiling(bundle).promised


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16")
def test_half_precision_of_openvino_is_close_and_says_how_close(bundle: Bundle, raw: RawImage) -> None:
    ours, engine = denoise_raw(raw, Engine(bundle)), Engine(bundle, backend="openvino", precision="bf16")
    found = denoise_raw(raw, engine)
    assert 0 < np.abs(found - ours).max() < 0.05
    assert engine.opened.lightness is not None
    assert 0 < engine.opened.lightness.noise < 1


def altered(graph: onnx.ModelProto, by: float) -> onnx.ModelProto:
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1 + by), weight.name))
    return graph


@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_that_computes_something_else_never_sees_a_file(
    bundle: Bundle, cache: Path, backend: BackendName
) -> None:
    """Here by a graph in the cache that another weight has got into: the same gate that a faulty driver meets."""
    [path] = [p for p in (cache / "stillgrain" / "graphs").iterdir() if p.name.startswith(bundle.digest)]
    content = path.read_bytes()
    try:
        path.write_bytes(altered(onnx.load_from_string(content), 0.5).SerializeToString())
        message = (
            rf"{'ONNX Runtime' if backend == 'onnx' else 'OpenVINO'} in fp32 does not .* differ by .* and 0.0001 is"
        )
        with pytest.raises(BundleError, match=message):
            Engine(bundle, backend=backend)
    finally:
        path.write_bytes(content)
    Engine(bundle, backend=backend)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_golden_tiles_that_pytorch_does_not_reproduce_are_refused_too(bundle: Bundle, precision: str) -> None:
    """As a device might that computes something else."""
    other = load_bundle(bundle.path)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.5)
    with pytest.raises(BundleError, match=rf"torch in {precision} on cpu does not reproduce the bundle's golden tiles"):
        open_backend(other, "torch", precision)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backend", OTHERS)
def test_a_new_size_is_checked_once_and_kept(bundle: Bundle, backend: BackendName) -> None:
    opened = open_backend(bundle, backend, "fp32").backend
    assert isinstance(opened, SizedBackend)
    for height, width in ((20, 24), (24, 20), (20, 24), (28, 20), (32, 20), (20, 24)):
        x = torch.rand(1, 4, height, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = bundle.model(x)
        torch.testing.assert_close(opened.run(x), wanted, rtol=0, atol=1e-5)
    assert opened.sizes == [(28, 20), (32, 20), (20, 24)]


def test_a_graph_is_traced_once_and_what_is_damaged_is_traced_again(bundle: Bundle, cache: Path) -> None:
    graph = cached_graph(bundle)
    [path] = [p for p in (cache / "stillgrain" / "graphs").iterdir() if p.name.startswith(bundle.digest)]
    content = path.read_bytes()
    assert onnx.load_from_string(content) == graph
    for damaged in (b"", content[:1000]):
        path.write_bytes(damaged)
        assert cached_graph(bundle) == graph
        assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_done_without(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cached_graph(bundle).graph.name == "denoiser"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "onnx", "precision": "bf16"}, "precision is bf16, and ONNX Runtime computes .* in fp32 only"),
        ({"backend": "openvino", "device": "cuda"}, "device is cuda, and backend openvino runs on the CPU"),
    ],
)
def test_what_does_not_go_together_is_refused(bundle: Bundle, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(bundle, **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("backend", "name"), [("onnx", "onnxruntime"), ("onnx", "onnx"), ("openvino", "openvino")])
def test_a_backend_whose_package_is_missing_names_the_extra(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, backend: BackendName, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs the package {name},.*pip install 'stillgrain\[export\]'"):
        Engine(bundle, backend=backend)


def test_lightness_errors_do_not_depend_on_exposure_and_tell_grain_from_a_cast() -> None:
    picture = golden_inputs(3, 8).clamp_min(0) + 0.01
    grain = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    for gain in (1.0, 2**-6):
        found = lightness_error(gain * picture * (1 + 0.01 * grain), gain * picture)
        assert found.noise == pytest.approx(lightness_error(picture * (1 + 0.01 * grain), picture).noise, rel=1e-3)
        assert found.noise > 5 * found.shift
    cast = lightness_error(picture * 1.01, picture)
    assert cast.noise == pytest.approx(cast.shift, rel=0.5)
    assert lightness_error(picture, picture).noise == 0


def test_a_step_of_lightness_is_the_one_of_the_standard() -> None:
    """CIE 15:2004: a luminance of 0.184 is L* 50, and 0.188 half a step more."""
    grey = torch.full((1, 3, 4, 4), 0.184)
    assert lightness_error(torch.full_like(grey, 0.1884), grey).shift == pytest.approx(0.5, abs=0.05)
    assert not lightness_error(torch.full_like(grey, 0.1860), grey).is_seen
    assert lightness_error(torch.full_like(grey, 0.1884), grey).is_seen
    assert lightness_error(torch.full_like(grey, torch.nan), grey).is_seen
