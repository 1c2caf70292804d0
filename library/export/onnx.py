"""A bundle's network as an ONNX file, opset 20, for sides of one size or of any.

    input   `input`, float32 (1, C, height, width): what the bundle's model takes
    output  `output`, float32 (1, 3, scale * height, scale * width): what it gives

Four planes in, camera RGB out is darktable's Bayer contract (`bayer_v1`). metadata_props say which bundle it is, what
its numbers mean, how far the network sees and what sides must be multiples of, under names that begin with
`stillgrain.`.
"""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from library.bundle import Bundle
from library.errors import BundleError
from library.export.golden import Exported
from library.files.atomic import whole_file
from library.files.places import place
from library.inference.backends.golden import check_golden_tiles, check_sides, running
from library.inference.backends.graph import OPSET, network_graph, sized_graph
from library.inference.backends.onnx import onnx_session
from library.inference.backends.packages import need, package


def export_onnx(bundle: Bundle, output: str | Path | UPath, *, tile: int | None = None) -> Exported:
    """Write the bundle's network as an ONNX file, whole or not at all.

    tile    model input pixels a side; None: any size, each side a multiple of the bundle's lattice
    raises  BundleError when the network has no ONNX form, or what was made of it does not reproduce the golden tiles;
            ConfigError for a tile that is no multiple of the lattice, or without the packages of the extra [export]
    """
    need("onnx", "onnxscript", "onnxruntime")
    graph = sized_graph(bundle, network_graph(bundle), tile)
    content = graph.SerializeToString(deterministic=True)
    difference = check_onnx(bundle, content, tile)
    with whole_file(path := place(output)) as temporary:
        temporary.write_bytes(content)
    sides = f"multiples of {bundle.model.lattice} px a side" if tile is None else f"{tile} px a side"
    return Exported(path, f"ONNX opset {OPSET}, {sides}", difference, bundle.manifest["golden_tolerance"])


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
