"""A bundle's network as an ONNX file, opset 20, for sides of one size or of any.

    input   `input`, float32 (1, C, height, width): what the bundle's model takes
    output  `output`, float32 (1, 3, scale * height, scale * width): what it gives

Four planes in, camera RGB out is darktable's Bayer contract (`bayer_v1`). metadata_props say which bundle it is, what
its numbers mean, how far the network sees and what sides must be multiples of, under names that begin with
`stillgrain.`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from upath import UPath

from library.bundle import Bundle
from library.errors import BundleError, ConfigError
from library.export.golden import Exported, Run, check_golden_tiles, check_sides, running
from library.export.packages import need, package
from library.files.atomic import whole_file
from library.files.places import place
from library.sealed import CARD, read_files

OPSET = 20
METADATA = "stillgrain."
"""What the names of our metadata begin with."""
_IR_VERSION = 9
"""Of the file format: the one that came with opset 20 (ONNX 1.15), so that readers of that age take the file."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_SIDES = ("height", "width")
"""Names of sides of any size; darktable and others know them by these."""


def export_onnx(bundle: Bundle, output: str | Path | UPath, *, tile: int | None = None) -> Exported:
    """Write the bundle's network as an ONNX file, whole or not at all.

    tile    model input pixels a side; None: any size, each side a multiple of the bundle's lattice
    raises  BundleError when the network has no ONNX form, or what was made of it does not reproduce the golden tiles;
            ConfigError for a tile that is no multiple of the lattice, or without the packages of the extra [export]
    """
    graph = sized_graph(bundle, network_graph(bundle), tile)
    content = graph.SerializeToString(deterministic=True)
    difference = check_onnx(bundle, content, tile)
    with whole_file(path := place(output)) as temporary:
        temporary.write_bytes(content)
    sides = f"multiples of {bundle.model.lattice} px a side" if tile is None else f"{tile} px a side"
    return Exported(path, f"ONNX opset {OPSET}, {sides}", difference, bundle.manifest["golden_tolerance"])


def network_graph(bundle: Bundle) -> Any:
    """The bundle's network as an `onnx.ModelProto` for sides of any size. Its values are not checked yet."""
    need(*_PACKAGES)
    model, onnx = bundle.model, package("onnx")
    x = torch.zeros(1, model.in_channels, 8 * model.lattice, 10 * model.lattice)
    try:
        # Traced at one size, in a third of the time that symbolic sides take. Nodes of a network that can be tiled know
        # no size, so its sides are freed afterwards; were one left in a node, the check at other sizes would find it.
        with _quiet():
            program = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise BundleError(
            bundle.path,
            f"has no ONNX form: PyTorch's exporter cannot express a {bundle.manifest['model']['kind']} of these "
            f"settings ({type(error.__cause__ or error).__name__}: {reason})",
        ) from None
    assert program is not None
    traced = program.model_proto
    # Nodes remember the files and lines of this machine that they come from.
    for node in traced.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del traced.graph.value_info[:], traced.graph.metadata_props[:], traced.metadata_props[:]
    for value in (*traced.graph.input, *traced.graph.output, *traced.graph.initializer):
        del value.metadata_props[:]
    traced.graph.name = "denoiser"
    traced.ir_version = _IR_VERSION
    onnx.helper.set_model_props(traced, {METADATA + key: text for key, text in _metadata(bundle).items()})
    return sized_graph(bundle, traced, None)


def sized_graph(bundle: Bundle, graph: Any, tile: int | None) -> Any:
    """The graph for `tile` pixels a side, or of any size when that is None; the original is left as it was.

    raises  ConfigError when the tile is no multiple of the lattice
    """
    model = bundle.model
    if tile is not None and (tile <= 0 or tile % model.lattice):
        raise ConfigError(f"tile is {tile}, but must be a multiple of the bundle's lattice, {model.lattice}")
    graph = type(graph).FromString(graph.SerializeToString())
    for value, scale in ((graph.graph.input[0], 1), (graph.graph.output[0], model.scale)):
        for name, dim in zip(_SIDES, value.type.tensor_type.shape.dim[2:], strict=True):
            dim.Clear()
            if tile is None:
                dim.dim_param = name if scale == 1 else f"{scale}*{name}"
            else:
                dim.dim_value = scale * tile
    return graph


def check_onnx(bundle: Bundle, content: bytes, tile: int | None) -> float:
    """The largest difference of an ONNX file in ONNX Runtime from the bundle: on the golden tiles, and on an image of
    the file's own size, or of an odd one where it takes any.

    raises  BundleError when it is not a valid graph, or not that of the bundle
    """
    onnx = package("onnx")
    graph = onnx.load_from_string(content)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(bundle.path, f"gave an ONNX graph that is not valid: {error}") from None
    lattice = bundle.model.lattice
    height, width = (tile, tile) if tile else (5 * lattice, 9 * lattice)
    # Golden tiles have a size of their own. A graph's weights and nodes do not change with its sides.
    any_size = content if tile is None else sized_graph(bundle, graph, None).SerializeToString()
    with running(bundle, "ONNX Runtime"):
        return max(
            check_golden_tiles(bundle, onnx_session(any_size), "ONNX Runtime"),
            check_sides(bundle, onnx_session(content), height, width, "ONNX Runtime"),
        )


def onnx_session(content: bytes, *, num_threads: int | None = None) -> Run:
    """What computes an ONNX file in ONNX Runtime on the CPU; `num_threads` None: as many as PyTorch uses."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 4  # it says as an exception what went wrong
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _metadata(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    contract = {key: manifest[key] for key in ("input", "output", "levels")}
    return {
        "name": bundle.name,
        "bundle_digest": bundle.digest,
        "halo": str(bundle.model.halo),
        "lattice": str(bundle.model.lattice),
        "contract": json.dumps(contract, sort_keys=True),
        "golden_tolerance": str(manifest["golden_tolerance"]),
        "model_card": read_files(place(bundle.path))[CARD].decode(),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own internals, and of packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
