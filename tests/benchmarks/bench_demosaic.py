"""Demosaicing: how near to the picture, and how fast, beside other people's.

    python -m tests.benchmarks.bench_demosaic [FOLDER_OF_PNGS]

PSNR of sRGB pictures seen through an RGGB mosaic, peak 1, mean of three channels, 8 px of border left out, as the Kodak
set is usually reported. LibRaw reads a DNG that is written for it; its time is with the reading, without the writing.
Speed on one picture of 6 MP, median of five, all in one run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import rawpy
import torch
from PIL import Image
from torch import Tensor

from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.ops.cfa import sample_cfa
from library.ops.demosaic import demosaic_bilinear, demosaic_malvar
from library.ops.directional import demosaic_ahd, demosaic_menon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import colour_demosaicing

KODAK = Path(__file__).parents[3] / "shared/data/rgb/kodak"
_BORDER = 8
_WHITE = 65535


def ours(demosaic: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda mosaic: demosaic(torch.from_numpy(mosaic)).permute(1, 2, 0).numpy()


def theirs(demosaic: Callable[[np.ndarray, str], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda mosaic: demosaic(mosaic, "RGGB")


def libraw(algorithm: rawpy.DemosaicAlgorithm) -> Callable[[np.ndarray], np.ndarray]:
    def demosaic(mosaic: np.ndarray) -> np.ndarray:
        with rawpy.imread(str(_dng(mosaic))) as raw:
            rgb = raw.postprocess(
                demosaic_algorithm=algorithm,
                output_color=rawpy.ColorSpace.raw,
                user_wb=[1, 1, 1, 1],
                gamma=(1, 1),
                no_auto_bright=True,
                no_auto_scale=True,
                output_bps=16,
            )
        return rgb.astype(np.float32) / _WHITE

    return demosaic


METHODS = {
    "bilinear, ours": ours(demosaic_bilinear),
    "Malvar 2004, ours": ours(demosaic_malvar),
    "Malvar 2004, colour-demosaicing": theirs(colour_demosaicing.demosaicing_CFA_Bayer_Malvar2004),
    "AHD, LibRaw": libraw(rawpy.DemosaicAlgorithm.AHD),
    "AHD, ours": ours(demosaic_ahd),
    "DCB, LibRaw": libraw(rawpy.DemosaicAlgorithm.DCB),
    "Menon 2007, colour-demosaicing": theirs(colour_demosaicing.demosaicing_CFA_Bayer_Menon2007),
    "Menon 2007, ours": ours(demosaic_menon),
}

_written: dict[int, Path] = {}
_folder = tempfile.TemporaryDirectory()


def _dng(mosaic: np.ndarray) -> Path:
    """The mosaic as a DNG, written once."""
    if id(mosaic) not in _written:
        path = Path(_folder.name, f"{len(_written)}.dng")
        codes = np.round(mosaic * _WHITE).astype(np.uint16)
        write_cfa_dng(
            path, codes, cfa="RGGB", black_level=np.zeros((2, 2)), white_level=_WHITE, metadata=ImageMetadata()
        )
        _written[id(mosaic)] = path
    return _written[id(mosaic)]


def psnr(rgb: np.ndarray, truth: np.ndarray) -> float:
    inside = np.s_[_BORDER:-_BORDER, _BORDER:-_BORDER]
    return float(-10 * np.log10(np.square(rgb[inside] - truth[inside]).mean(dtype=np.float64)))


def main(folder: Path = KODAK) -> None:
    truths = {
        path.stem: np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
        for path in sorted(folder.glob("*.png"))
    }
    mosaics = {name: sample_cfa(torch.from_numpy(truth).permute(2, 0, 1)).numpy() for name, truth in truths.items()}
    large = np.random.default_rng(0).random((2000, 3000), np.float32)
    print(
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), rawpy {version('rawpy')}, "
        f"colour-demosaicing {version('colour-demosaicing')}; {len(truths)} pictures of {folder}"
    )
    six = list(truths)[:6]
    print(f"{'':34}{'mean':>7}{'first 6':>9}{'MP/s':>8}   {' '.join(name[-5:] for name in truths)}")
    for label, demosaic in METHODS.items():
        decibels = {name: psnr(demosaic(mosaics[name]), truth) for name, truth in truths.items()}
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            demosaic(large)
            seconds.append(time.perf_counter() - start)
        speed = large.size / 1e6 / statistics.median(seconds[1:])  # the first writes LibRaw's file
        mean, first = np.mean(list(decibels.values())), np.mean([decibels[name] for name in six])
        single = " ".join(f"{value:5.2f}" for value in decibels.values())
        print(f"{label:34}{mean:7.2f}{first:9.2f}{speed:8.1f}   {single}", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
