"""A bundle's network as OpenVINO's intermediate representation: a folder with `model.xml`, `model.bin` and the bundle's
README.md.

Made from the ONNX form (library/inference/backends/graph.py), whose input, output and sides it has; what metadata_props
say there stands in the rt_info of `framework` here.
"""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from library.bundle import Bundle
from library.export.golden import Exported
from library.files.atomic import whole_folder
from library.files.places import place
from library.inference.backends.golden import check_golden_tiles, check_sides, running
from library.inference.backends.graph import network_graph, sized_graph
from library.inference.backends.openvino import openvino_session, read_onnx
from library.inference.backends.packages import need, package
from library.sealed import CARD, read_files

XML = "model.xml"


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
        model = read_onnx(sized_graph(bundle, graph, tile).SerializeToString())
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
