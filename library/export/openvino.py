"""A bundle's network as OpenVINO's intermediate representation: a folder with `model.xml`, `model.bin` and the bundle's
README.md.

Made from the ONNX form (library/export/onnx.py), whose input, output and sides it has; what metadata_props say there
stands in the rt_info of `framework` here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from upath import UPath

from library.bundle import Bundle
from library.export.golden import Exported, Run, check_golden_tiles, check_sides, running
from library.export.onnx import network_graph, sized_graph
from library.export.packages import need, package
from library.files.atomic import whole_folder
from library.files.places import place
from library.sealed import CARD, read_files

XML = "model.xml"
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def export_openvino(bundle: Bundle, output: str | Path | UPath, *, tile: int | None = None) -> Exported:
    """Write the bundle's network as a folder for OpenVINO, whole or not at all, with weights in float32.

    tile    model input pixels a side; None: any size, each side a multiple of the bundle's lattice
    raises  BundleError when the network has no ONNX form, or what was made of it does not reproduce the golden tiles;
            ConfigError for a tile that is no multiple of the lattice, or without the packages of the extra [export]
    """
    need("openvino")
    lattice = bundle.model.lattice
    graph = network_graph(bundle)
    height, width = (tile, tile) if tile else (5 * lattice, 9 * lattice)
    with whole_folder(path := place(output), last=XML) as temporary, running(bundle, "OpenVINO"):
        model = _read(sized_graph(bundle, graph, tile).SerializeToString())
        package("openvino").save_model(model, str(temporary / XML), compress_to_fp16=False)
        (temporary / CARD).write_bytes(read_files(place(bundle.path))[CARD])
        # Golden tiles have a size of their own, so a model of one size is checked on them before it was given that.
        on_tiles = openvino_session(temporary / XML if tile is None else graph.SerializeToString())
        difference = max(
            check_golden_tiles(bundle, on_tiles, "OpenVINO"),
            check_sides(bundle, openvino_session(temporary / XML), height, width, "OpenVINO"),
        )
    sides = f"multiples of {lattice} px a side" if tile is None else f"{tile} px a side"
    return Exported(path, f"OpenVINO, {sides}", difference, bundle.manifest["golden_tolerance"])


def openvino_session(source: bytes | Path, *, precision: str = "fp32", num_threads: int | None = None) -> Run:
    """What computes a model in OpenVINO on the CPU.

    source       bytes of an ONNX file, or the path of a `model.xml`
    precision    "fp32" or "bf16"; bf16 is much faster where the processor has it
    num_threads  None: as many as PyTorch uses
    """
    core = package("openvino").Core()
    model = _read(source) if isinstance(source, bytes) else core.read_model(str(source))
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": num_threads or torch.get_num_threads(),
    }
    compiled = core.compile_model(model, "CPU", settings)
    return lambda x: np.array(compiled(x)[0])


def _read(content: bytes) -> Any:
    """An ONNX file as OpenVINO's model. `convert_model` has the same reader, but reports its use to Google."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder, "model.onnx")).write_bytes(content)
        return package("openvino").Core().read_model(str(path))
