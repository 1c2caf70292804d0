from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from library.bundle import Bundle
from library.export.export import export_bundle
from library.inference.backends.openvino import openvino_session
from library.inference.backends.packages import package


@pytest.mark.parametrize("tile", [None, 24])
def test_the_folder_computes_what_the_network_does(tiny: Bundle, tmp_path: Path, tile: int | None) -> None:
    folder = tmp_path / "ir"
    exported = export_bundle(tiny.path, folder, to="openvino", tile=tile)
    assert sorted(f.name for f in folder.iterdir()) == ["README.md", "model.bin", "model.xml"]
    assert 0 <= exported.largest_difference <= exported.tolerance
    height, width = (tile, tile) if tile else (21, 35)
    x = np.random.default_rng(0).normal(0.4, 0.4, (1, 4, height, width)).astype(np.float32)
    with torch.no_grad():
        wanted = tiny.model(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).numpy()
    np.testing.assert_allclose(openvino_session(folder / "model.xml")(x), wanted, rtol=0, atol=1e-5)
    model = package("openvino").Core().read_model(folder / "model.xml")
    assert model.get_rt_info(["framework", "stillgrain.bundle_digest"]).astype(str) == tiny.digest
    assert model.inputs[0].partial_shape.is_static == (tile is not None)


def test_nothing_that_reports_to_its_makers_is_imported() -> None:
    words = "import sys; from library.inference.backends.packages import package; package('openvino')"
    words += "; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True).stdout.split()
    assert "openvino.tools.ovc" in loaded
    assert not [name for name in loaded if name.partition(".")[0] == "openvino_telemetry"]
