"""What is coded, and how a picture of it is judged: a raw by its truth, a display picture by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from library.errors import DataError, ImageFileError
from library.files.picture import write_png
from library.files.raw import RawImage, read_raw
from library.inference.subjects import Subject, subject_of_picture, subject_of_raw
from library.metrics import MS_SSIM_SMALLEST_SIDE, compare_camera_rgb, ms_ssim, psnr
from library.ops.cfa import mirror_pad, sample_cfa
from library.ops.color import XYZ_TO_LIN_REC2020, lin_rec2020_to_lin_srgb
from library.ops.transfer import root_encode, srgb_encode
from workloads.suite import centre, color_matrix, demosaiced, read_truth, scene_linear, unsaturated, write_crops


class Kind(NamedTuple):
    """What a run is over, in words, and what is measured there.

    metrics  name of what `Scene.judge` gives -> what people call it
    """

    image: str
    site: str
    """What bits are counted of."""
    metrics: Mapping[str, str]

    def counted(self, number: int) -> str:
        """So many of them, in words: "1 raw", "3 raws"."""
        return f"{number} {self.image}" + ("s" if number != 1 else "")


RAWS = Kind(
    "raw",
    "photosite",
    {
        "ms_ssim": "MS-SSIM, developed",
        "psnr": "PSNR, developed",
        "psnr.linear": "PSNR, linear",
        "psnr.stabilized": "PSNR, stabilised",
        "psnr.stabilized_to_noisy": "PSNR to the noisy mosaic, stabilised",
        "psnr.linear_to_noisy": "PSNR to the noisy mosaic, linear",
        "psnr.developed_to_noisy": "PSNR to the noisy picture, developed",
        "ms_ssim.developed_to_noisy": "MS-SSIM to the noisy picture, developed",
    },
)
"""Those to the noise are no measure of quality but of fidelity."""
PICTURES = Kind(
    "picture",
    "pixel",
    {
        "ms_ssim": "MS-SSIM, 8-bit sRGB",
        "psnr": "PSNR, 8-bit sRGB",
        "psnr.linear": "PSNR, linear",
        "psnr.stabilized": "PSNR, stabilised",
    },
)


class Scene(Protocol):
    """An image, or the part of it that is coded."""

    @property
    def kind(self) -> Kind: ...

    @property
    def truth(self) -> Tensor:
        """(1, 3, H, W) camera RGB; a picture's camera has the colours of Rec.2020."""
        ...

    @property
    def matrix(self) -> Tensor:
        """(1, 3, 3) XYZ to camera RGB."""
        ...

    @property
    def photosites(self) -> int:
        """Or pixels, of a picture."""
        ...

    @property
    def camera(self) -> str:
        """Empty where there is none."""
        ...

    @property
    def iso(self) -> float | None: ...

    @property
    def uncoded(self) -> dict[str, tuple[str, Tensor]]:
        """Name of a file -> label and camera RGB of what is shown beside what was coded, the truth first."""
        ...

    def subject(self, side: int) -> Subject:
        """What a learned codec is given, padded to multiples of `side` photosites."""
        ...

    def judge(self, camera_rgb: Tensor) -> dict[str, float]:
        """The metrics of its kind of a picture (1, 3, H, W)."""
        ...

    def write_crops(self, folder: Path, pictures: Mapping[str, Tensor]) -> None:
        """`<name>.png` of parts (1, 3, h, w) of pictures, `truth` among them, all developed alike."""
        ...


class RawScene:
    """A raw, the part of it that is coded, and its truth.

    crop    photosites a side of the part, its centre; None for the whole
    raises  RawFileError, ImageFileError for files that cannot be compared
    """

    kind = RAWS

    def __init__(self, raw_path: Path, truth_path: Path, crop: int | None) -> None:
        raw = read_raw(raw_path)
        self.matrix = color_matrix(raw)
        truth = read_truth(truth_path, raw)
        if crop is not None:
            rows, columns = centre(raw.height, raw.width, crop, raw_path)
            # From an even place on, so that the tile of the CFA stays.
            rows, columns = (slice(span.start // 2 * 2, span.start // 2 * 2 + crop) for span in (rows, columns))
            raw = dataclasses.replace(raw, mosaic=np.ascontiguousarray(raw.mosaic[rows, columns]))
            truth = truth[..., rows, columns]
        self.raw: RawImage = raw
        self.truth: Tensor = truth
        self.mask: Tensor = unsaturated(truth, raw)
        self.mosaic: Tensor = scene_linear(raw)

    @cached_property
    def noisy(self) -> Tensor:
        """(1, 3, H, W) camera RGB, without any loss but the noise."""
        return demosaiced(self.raw)

    @property
    def photosites(self) -> int:
        return self.raw.mosaic.size

    @property
    def camera(self) -> str:
        return self.raw.metadata().camera

    @property
    def iso(self) -> float | None:
        return self.raw.iso

    @property
    def uncoded(self) -> dict[str, tuple[str, Tensor]]:
        return {"truth": ("Truth", self.truth), "noisy": ("Noisy input", self.noisy)}

    def subject(self, side: int) -> Subject:
        return subject_of_raw(self.raw, side)

    def judge(self, camera_rgb: Tensor) -> dict[str, float]:
        """The metrics of `RAWS`.

        `psnr`, `ms_ssim`, `psnr.linear`  as of `compare_camera_rgb`
        `psnr.stabilized`                 of the root of camera RGB (`root_encode`), unclipped, peak 1
        `*.developed_to_noisy`            to the demosaiced mosaic (Malvar), developed as the picture is
        the others `_to_noisy`            to the recorded mosaic, at its photosites: camera values

        To the noise all pixels count, to the truth those that do not saturate.
        """
        sampled, noisy = sample_cfa(camera_rgb[0], self.raw.cfa)[None, None], self.mosaic[None, None]
        everywhere = torch.ones_like(noisy)
        to_noisy = compare_camera_rgb(camera_rgb, self.noisy, everywhere, self.matrix)
        return {
            **compare_camera_rgb(camera_rgb, self.truth, self.mask, self.matrix),
            "psnr.stabilized": float(psnr(root_encode(camera_rgb), root_encode(self.truth), self.mask)),
            "psnr.stabilized_to_noisy": float(psnr(root_encode(sampled), root_encode(noisy), everywhere)),
            "psnr.linear_to_noisy": float(psnr(sampled, noisy, everywhere)),
            "psnr.developed_to_noisy": to_noisy["psnr"],
            "ms_ssim.developed_to_noisy": to_noisy["ms_ssim"],
        }

    def write_crops(self, folder: Path, pictures: Mapping[str, Tensor]) -> None:
        write_crops(folder, self.raw, pictures["truth"], pictures)


class PictureScene:
    """A display picture, or the part of it that is coded: its own truth.

    crop    pixels a side of the part, its centre; None for the whole
    raises  ImageFileError for a file that cannot be read, or is too small to be compared
    """

    kind = PICTURES
    matrix = XYZ_TO_LIN_REC2020[None]
    camera = ""
    iso = None

    def __init__(self, path: Path, crop: int | None) -> None:
        whole = subject_of_picture(path, side=1)
        side = crop or MS_SSIM_SMALLEST_SIDE
        if min(whole.height, whole.width) < side:
            size = f"{whole.width} x {whole.height} px"
            raise ImageFileError(path, f"is {size}, but {side} a side are to be compared: lower crop, or leave it out")
        samples = whole.samples
        if crop is not None:
            top, left = (whole.height - crop) // 2, (whole.width - crop) // 2
            samples = samples[:, top : top + crop, left : left + crop].contiguous()
        height, width = samples.shape[1:]
        self._subject = dataclasses.replace(whole, samples=samples, height=height, width=width)

    @property
    def truth(self) -> Tensor:
        return self._subject.samples[None]

    @property
    def photosites(self) -> int:
        return self._subject.height * self._subject.width

    @property
    def uncoded(self) -> dict[str, tuple[str, Tensor]]:
        return {"truth": ("Original", self.truth)}

    def subject(self, side: int) -> Subject:
        samples, height, width = self._subject.samples, self._subject.height, self._subject.width
        padded = mirror_pad(mirror_pad(samples, -2, 0, -height % side), -1, 0, -width % side)
        return dataclasses.replace(self._subject, samples=padded)

    def judge(self, camera_rgb: Tensor) -> dict[str, float]:
        """The metrics of `PICTURES`.

        `psnr`, `ms_ssim`  of sRGB codes of 8 bits, to which both are rounded; peak 255
        `psnr.linear`      lin_rec2020, unclipped, peak 1
        `psnr.stabilized`  of its root (`root_encode`), unclipped, peak 1
        """
        everywhere = torch.ones_like(self.truth[:, :1])
        srgb, true_srgb = (_srgb_codes(x).float() / 255 for x in (camera_rgb, self.truth))
        return {
            "psnr": float(psnr(srgb, true_srgb, everywhere)),
            "ms_ssim": float(ms_ssim(srgb, true_srgb, everywhere)),
            "psnr.linear": float(psnr(camera_rgb, self.truth, everywhere)),
            "psnr.stabilized": float(psnr(root_encode(camera_rgb), root_encode(self.truth), everywhere)),
        }

    def write_crops(self, folder: Path, pictures: Mapping[str, Tensor]) -> None:
        for name, picture in pictures.items():
            write_png(folder / f"{name}.png", np.ascontiguousarray(_srgb_codes(picture)[0].permute(1, 2, 0).numpy()))


def find_pictures(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Name -> PNG file and its truth, which is itself, sorted by name: its path below the folder, without suffix.

    raises  DataError when there is nothing
    """
    if not folder.is_dir():
        raise DataError(f"pictures: {folder} is not a folder; give one of PNG files")
    files = (file for file in folder.rglob("*") if file.suffix.lower() == ".png" and file.is_file())
    found = {str(f.relative_to(folder).with_suffix("")): (f, f) for f in files if not f.name.startswith(".")}
    if not found:
        raise DataError(f"pictures: {folder} holds no PNG files, which are what is coded: give another folder")
    return dict(sorted(found.items()))


def _srgb_codes(lin_rec2020: Tensor) -> Tensor:
    """uint8 of the same shape. What a picture of 8 bits came from gives it again."""
    return (srgb_encode(lin_rec2020_to_lin_srgb(lin_rec2020).clamp(0, 1)) * 255).round().byte()
