"""A bundle as a package that darktable installs; library/export/dtpackage.py says what that is."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from upath import UPath

from library.bundle import Bundle, golden_inputs
from library.config import validate
from library.errors import BundleError, ConfigError
from library.export.darktable import compare_with_engine
from library.export.dtpackage import CONFIG, OVERLAP, SUFFIX, DarktableConfig, read_dtmodel
from library.export.golden import Exported
from library.export.onnx import check_onnx
from library.files.atomic import whole_file
from library.files.places import place
from library.files.raw import read_raw
from library.inference.backends.graph import OPSET, network_graph, sized_graph
from library.inference.backends.packages import need
from library.sealed import CARD, MANIFEST, read_files

DEFAULT_TILE = 512
"""Model input pixels a side, of the packages that darktable releases."""
_SMALLEST_TILE = 4 * OVERLAP
"""Below it darktable refuses, as the ramps of its seams would meet."""
_LARGEST_HALF = 65504.0
_HEADROOM = 16.0
"""How much larger than on the golden tiles an activation may become in a picture."""


def export_dtmodel(
    bundle: Bundle,
    output: str | Path | UPath,
    *,
    linear: Bundle | None = None,
    tile: int = DEFAULT_TILE,
    card: Mapping[str, str] | None = None,
    raw: str | Path | None = None,
) -> Exported:
    """Write a package for darktable, whole or not at all.

    bundle  of a raw denoiser, or of an RGB denoiser where there is no other
    output  `<id>.dtmodel`; the file's name is the package's id
    linear  of an RGB denoiser, whose graph goes beside that of `bundle`
    tile    model input pixels a side
    card    fields of `ModelCard` that a bundle does not know, such as author and license
    raw     a raw file on which what darktable makes of it must be what our engine does
    raises  BundleError when a network has no ONNX form, does not reproduce its golden tiles, or is not what its place
            needs; ConfigError for a name, tile or card that darktable would refuse, or without the extra [export];
            RawFileError for a raw that cannot be read
    """
    need("onnx", "onnxscript", "onnxruntime")
    path = place(output)
    bundles = _by_stem(bundle, linear)
    image = read_raw(raw) if raw is not None else None
    if path.suffix != SUFFIX:
        raise ConfigError(f"output is {path.name}, but darktable installs files named NAME{SUFFIX}: name it so")
    for each in bundles.values():
        if tile < _SMALLEST_TILE or tile % each.model.lattice:
            raise ConfigError(
                f"tile is {tile}, but must be at least {_SMALLEST_TILE} for darktable and a multiple of "
                f"{each.model.lattice}, the lattice of {each.path}"
            )
    config = _config(path.stem, bundles, tile, card or {})
    entries: dict[str, bytes] = {CONFIG: config.to_json().encode()}
    for stem, each in bundles.items():
        graph = sized_graph(each, network_graph(each), tile)
        entries[f"{stem}.onnx"] = graph.SerializeToString(deterministic=True)
    for stem, each in bundles.items():
        files = read_files(place(each.path))
        entries |= {f"{stem}.json": files[MANIFEST], f"{stem}.md": files[CARD]}
    with whole_file(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                info = zipfile.ZipInfo(f"{config.id}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
        packed = read_dtmodel(temporary)
        difference = max(check_onnx(each, packed.graphs[stem], tile) for stem, each in bundles.items())
        compared = compare_with_engine(packed, bundle, image) if image else None
    what = f"darktable package of {' and '.join(bundles)}, ONNX opset {OPSET}, {tile} px a side"
    if compared:
        what = f"{what}; {compared}"
    return Exported(path, what, difference, max(b.manifest["golden_tolerance"] for b in bundles.values()))


def _by_stem(bundle: Bundle, linear: Bundle | None) -> dict[str, Bundle]:
    if bundle.model.in_channels == 5:
        raise BundleError(
            bundle.path, "takes CFA planes, which darktable does not give: use one of packed planes (4) or pictures (3)"
        )
    if linear is None:
        return {"model_bayer" if bundle.model.in_channels == 4 else "model_linear": bundle}
    for wanted, each in ((4, bundle), (3, linear)):
        if each.model.in_channels != wanted:
            raise BundleError(
                each.path,
                f"takes {each.model.in_channels} channels: with `linear`, the first bundle is of a raw denoiser "
                "(4 channels), and `linear` of an RGB denoiser (3)",
            )
    return {"model_bayer": bundle, "model_linear": linear}


def _config(identity: str, bundles: Mapping[str, Bundle], tile: int, card: Mapping[str, str]) -> DarktableConfig:
    first = next(iter(bundles.values()))
    kind = first.manifest["model"]["kind"]
    graphs: dict[str, Any] = {
        stem: {"output_scale": "absolute" if each.gain == "absolute" else "match_gain"}
        for stem, each in bundles.items()
    }
    if any(_largest_activation(each) > _LARGEST_HALF / _HEADROOM for each in bundles.values()):
        graphs["coreml_cpu_only"] = True
    known = {
        "long_description": f"A {kind} trained by Stillgrain ({first.model.num_parameters:,} parameters). "
        f"{'Joint denoising and demosaicing of Bayer raws' if first.model.in_channels == 4 else 'Denoising'} at the "
        "input's own scale, without white balance.",
        "scope": _scope(bundles),
        "training_data": "; ".join(dict.fromkeys(_training_data(each) for each in bundles.values())),
        "notes": " ".join(_note(stem, each, tile) for stem, each in bundles.items()),
    }
    data = {
        "id": identity,
        "name": first.name,
        "description": f"Raw denoiser {first.name}, {kind}",
        "arch": kind,
        "model_card": known | dict(card),
        "attributes": {"input_sizes": [tile], **graphs},
    }
    return validate(DarktableConfig, data, "package")


def _scope(bundles: Mapping[str, Bundle]) -> str:
    kinds = {"model_bayer": "Bayer raws", "model_linear": "raws that are demosaiced first (X-Trans and others)"}
    here = " and ".join(kinds[stem] for stem in kinds if stem in bundles)
    missing = [f"it holds no {stem}, so not {what}" for stem, what in kinds.items() if stem not in bundles]
    return "; ".join([here, *missing])


def _training_data(bundle: Bundle) -> str:
    dataset = bundle.manifest["training"].get("dataset", {})
    return f"{dataset.get('kind', 'not stated')} (digest {bundle.manifest['data_digest']})"


def _note(stem: str, bundle: Bundle, tile: int) -> str:
    reach = bundle.model.geometry.reach
    seams = (
        f"It sees {reach} px, and darktable's tiles of {tile} px overlap by {OVERLAP}: "
        f"{'borders of tiles weigh little in seams' if reach <= OVERLAP else 'seams are approximate'}."
    )
    return f"{stem}: bundle sha256:{bundle.digest}, step {bundle.manifest['step']}. {seams}"


@torch.no_grad()
def _largest_activation(bundle: Bundle) -> float:
    """Largest magnitude that leaves a layer on the golden tiles."""
    largest = 0.0

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, float(output.abs().max()))

    model = bundle.model
    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        model(golden_inputs(model.in_channels, model.lattice).contiguous(memory_format=torch.channels_last))
    finally:
        for hook in hooks:
            hook.remove()
    return largest
