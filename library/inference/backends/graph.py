"""A bundle's network as an ONNX graph, opset 20, for sides of one size or of any.

input   `input`, float32 (1, C, height, width): what the bundle's model takes
output  `output`, float32 (1, 3, scale * height, scale * width): what it gives

metadata_props say which bundle it is, what its numbers mean, how far the network sees and what sides must be multiples
of, under names that begin with `stillgrain.`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from library.bundle import Bundle
from library.errors import BundleError, ConfigError
from library.files.atomic import whole_file
from library.files.places import place
from library.inference.backends.packages import need, package
from library.sealed import CARD, read_files

OPSET = 20
_METADATA = "stillgrain."
"""What the names of our metadata begin with."""
_IR_VERSION = 9
"""Of the file format: the one that came with opset 20 (ONNX 1.15), so that readers of that age take the file."""
_SIDES = ("height", "width")
"""Names of sides of any size; darktable and others know them by these."""
_CACHE_VERSION = 1
"""Changes whenever the same bundle and PyTorch would give another graph."""


def network_graph(bundle: Bundle) -> Any:
    """The bundle's network as an `onnx.ModelProto` for sides of any size. Its values are not checked yet.

    raises  BundleError when the network has no ONNX form; ConfigError without the packages of the extra [export]
    """
    need("onnx", "onnxscript")
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
    onnx.helper.set_model_props(traced, {_METADATA + key: text for key, text in _metadata(bundle).items()})
    return sized_graph(bundle, traced, None)


def cached_graph(bundle: Bundle) -> Any:
    """`network_graph`, kept in the user's cache: tracing takes seconds, which every actor would spend again.

    The file's name holds all that the graph follows from: the bundle's digest, PyTorch's version and our own. What is
    damaged, or of a folder that cannot be written, is traced again.
    """
    need("onnx")
    onnx = package("onnx")
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stillgrain" / "graphs"
    path = folder / f"{bundle.digest}-{_CACHE_VERSION}-torch{torch.__version__}.onnx"
    with contextlib.suppress(OSError, ValueError, package("google.protobuf.message").DecodeError):
        graph = onnx.load_from_string(path.read_bytes())
        said = {entry.key: entry.value for entry in graph.metadata_props}
        if said.get(_METADATA + "bundle_digest") == bundle.digest:
            return graph
    graph = network_graph(bundle)
    with contextlib.suppress(OSError), whole_file(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
    return graph


def sized_graph(bundle: Bundle, graph: Any, tile: int | tuple[int, int] | None) -> Any:
    """The graph for `tile` pixels a side, or of any size when that is None; the original is left as it was.

    tile    model input pixels: one for both sides, or height and width
    raises  ConfigError when a side is no multiple of the lattice
    """
    model = bundle.model
    sides = (tile, tile) if isinstance(tile, int) else tile
    for side in sides or ():
        if side <= 0 or side % model.lattice:
            raise ConfigError(f"tile is {side}, but must be a multiple of the bundle's lattice, {model.lattice}")
    graph = type(graph).FromString(graph.SerializeToString())
    for value, scale in ((graph.graph.input[0], 1), (graph.graph.output[0], model.scale)):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim[2:]):
            dim.Clear()
            if sides is None:
                dim.dim_param = _SIDES[axis] if scale == 1 else f"{scale}*{_SIDES[axis]}"
            else:
                dim.dim_value = scale * sides[axis]
    return graph


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
