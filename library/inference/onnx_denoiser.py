"""A raw denoiser of somebody else's, as an ONNX file with darktable's Bayer contract (`bayer_v1`).

    input   float32 (1, 4, h, w): R, G1, G2, B from the CFA's red site on, (raw - black) / (white - black), unclipped,
            mirrored at the edges, no white balance
    output  (1, 3, 2h, 2w): camera RGB in the same frame

Inputs and outputs are known by their order, not their names. A graph tells neither how far it sees nor what sides it
needs, so tiles overlap by a fixed width, and results need not be independent of the tile. What else it asks for stands
in a darktable model folder's config.json, where there is one.

Source: darktable, src/common/ai/restore.h; darktable-ai-sdk, docs/dtmodel-format.md.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from library.errors import BundleError, ConfigError, RawFileError
from library.files.raw import RawImage
from library.ops.cfa import mirror_pad, pack_cfa, pad_to_rggb, rggb_offset
from library.ops.levels import normalize_levels

OVERLAP = 64
"""Packed pixels that a tile sees around its own: more than the 56 of RawNIND's U-Net, the widest that is about."""
_LATTICE = 32
"""Packed pixels that the sides of a graph without sides of its own are multiples of: five halvings."""
_SMALLEST_TILE = 2 * OVERLAP + _LATTICE


def check_onnxruntime() -> None:
    """Raises ConfigError, saying how to get it, when the package that runs these files is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise ConfigError(
            "onnx: running ONNX files needs the package onnxruntime, which is not installed: "
            "`pip install 'stillgrain[export]'` (or onnxruntime alone) in the environment of every worker"
        )


class OnnxDenoiser:
    """Runs one file on the CPU.

    tile    packed pixels a side of what the graph is given, where it does not say so itself
    raises  ConfigError without onnxruntime; BundleError for a file that is not such a graph
    """

    def __init__(self, path: str | Path, *, tile: int, num_threads: int = 1) -> None:
        check_onnxruntime()
        runtime = importlib.import_module("onnxruntime")
        self.path = str(path)
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise BundleError(path, f"cannot be read ({error.strerror}): give the path of an ONNX file") from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4
        try:
            # From the path, or weights that lie beside the file would not be found.
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # The package's errors have no base of their own.
            raise BundleError(path, f"is no graph that onnxruntime {runtime.__version__} can run: {error}") from None
        self.gain: Literal["absolute", "arbitrary"] = _gain(Path(path))
        self.digest = hashlib.sha256(content).hexdigest()
        self.version: str = runtime.__version__
        self._input, self._output = _ends(self.path, self._session)
        self.tile = self._sides(tile)

    @property
    def identity(self) -> str:
        """Same identity, same numbers."""
        return f"onnx {self.digest} {self.gain} tile {self.tile[0]} x {self.tile[1]} onnxruntime {self.version}"

    def camera_rgb(self, raw: RawImage) -> Tensor:
        """The denoised and demosaiced picture in the raw's own pixels.

        returns  (1, 3, H, W) camera RGB, black at 0 and white at 1, below 0 and above 1 legal
        raises   BundleError when the graph gives another shape; RawFileError for an X-Trans raw, and for one without
                 brightness where the graph's gain is arbitrary
        """
        raw.require_bayer("this graph takes the four planes of a Bayer one: use a bundle of CFA planes or of pictures")
        offset = rggb_offset(raw.cfa)
        padded = pad_to_rggb(torch.from_numpy(raw.mosaic), raw.cfa)
        black_level = torch.from_numpy(np.roll(raw.black_level, offset, (0, 1)))
        mosaic = normalize_levels(padded, black_level, float(raw.white_level))
        height, width = (side // 2 for side in mosaic.shape)
        cores = [side - 2 * OVERLAP for side in self.tile]
        # Mirrored as a mosaic, so that each colour's lines stay its own.
        for dim, (side, core) in enumerate(zip((height, width), cores, strict=True)):
            mosaic = mirror_pad(mosaic, dim, 2 * OVERLAP, 2 * (OVERLAP + -side % core))
        packed = pack_cfa(mosaic)
        picture = torch.empty(3, *(2 * (side - 2 * OVERLAP) for side in packed.shape[1:]))
        for top in range(0, height, cores[0]):
            for left in range(0, width, cores[1]):
                tile = self._run(packed[None, :, top : top + self.tile[0], left : left + self.tile[1]])
                core = tile[:, 2 * OVERLAP : -2 * OVERLAP, 2 * OVERLAP : -2 * OVERLAP]
                picture[:, 2 * top : 2 * (top + cores[0]), 2 * left : 2 * (left + cores[1])] = core
        if self.gain == "arbitrary":
            inner = packed[:, OVERLAP : OVERLAP + height, OVERLAP : OVERLAP + width]
            picture = picture * self._gain_of(raw, inner, picture[:, : 2 * height, : 2 * width])
        (dy, dx) = offset
        return picture[None, :, dy : dy + raw.height, dx : dx + raw.width]

    def _gain_of(self, raw: RawImage, packed: Tensor, picture: Tensor) -> float:
        """As the contract has it: mean of the four planes over that of the three, once for the whole image."""
        wanted, own = float(packed.mean()), float(picture.mean())
        if not (wanted > 0 and own > 0):
            raise RawFileError(raw.path, "has no brightness that this graph's output could take: use one of its own")
        return wanted / own

    def _run(self, packed: Tensor) -> Tensor:
        """(1, 4, h, w) -> (3, 2h, 2w)"""
        (found,) = self._session.run([self._output], {self._input: packed.contiguous().numpy()})
        if found.shape != (wanted := (1, 3, 2 * packed.shape[2], 2 * packed.shape[3])):
            raise BundleError(
                self.path,
                f"gives {found.shape} for {tuple(packed.shape)}, but camera RGB is {wanted}: use a Bayer model",
            )
        return torch.from_numpy(found[0]).float()

    def _sides(self, tile: int) -> tuple[int, int]:
        """Height and width that the graph is given."""
        own = self._session.get_inputs()[0].shape[2:]
        # Sides without a number are whatever one likes.
        sides = [side if isinstance(side, int) else tile // _LATTICE * _LATTICE for side in own]
        if min(sides) < _SMALLEST_TILE:
            raise BundleError(
                self.path,
                f"takes tiles of {sides} packed pixels, but overlaps need {_SMALLEST_TILE} a side: raise tile",
            )
        return sides[0], sides[1]


def _ends(path: str, session: Any) -> tuple[str, str]:
    """Names of the input and the output."""
    (first, *more), output = session.get_inputs(), session.get_outputs()[0]
    channels = first.shape[1] if len(first.shape) == 4 else 0
    if more or first.type != "tensor(float)" or (isinstance(channels, int) and channels != 4):
        given = ", ".join(f"{entry.type} {entry.shape}" for entry in (first, *more))
        raise BundleError(path, f"takes {given}, but a Bayer model takes one float32 (1, 4, height, width)")
    return first.name, output.name


def _gain(path: Path) -> Literal["absolute", "arbitrary"]:
    """Scale of the output, as a config.json beside the file says; absolute without one."""
    config = path.with_name("config.json")
    if not config.exists():
        return "absolute"
    try:
        asked = json.loads(config.read_text(encoding="utf-8")).get("attributes", {}).get(path.stem)
        if asked is None:
            return "absolute"  # it speaks of other files
        kind, balance = asked.get("input_kind", "bayer_v1"), asked.get("wb_norm", "none")
        scale = asked.get("output_scale", "match_gain")
    except (ValueError, AttributeError):
        raise BundleError(config, "is not the JSON of a darktable model: repair it, or take it away") from None
    if kind != "bayer_v1" or balance != "none":
        raise BundleError(
            config,
            f"asks for input_kind {kind} and wb_norm {balance}, and only bayer_v1 without white balance is run here: "
            "use the folder's Bayer model",
        )
    return "absolute" if scale == "absolute" else "arbitrary"
