"""What is compared in an evaluation: the input as it is, classical denoisers, bundles and ONNX files. Each makes a
picture of a noisy image, which is judged here too."""

from __future__ import annotations

import ctypes
import dataclasses
import platform
import time
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from library.bundle import Bundle, load_bundle
from library.errors import ImageFileError, RawFileError
from library.files.picture import read_image, write_png
from library.files.raw import RawImage, read_raw
from library.inference.backends.base import Precision
from library.inference.classical import Baseline, best_classical, classical_picture
from library.inference.denoise import denoise_raw
from library.inference.engine import Engine
from library.inference.onnx_denoiser import OnnxDenoiser
from library.inference.outputs import OUTPUT_BLACK, OUTPUT_WHITE
from library.inference.tiled import run_tiled
from library.metrics import MS_SSIM_SMALLEST_SIDE, compare_aligned, compare_camera_rgb, ms_ssim, psnr
from library.ops.cfa import mirror_pad, sample_cfa
from library.ops.color import (
    XYZ_TO_LIN_REC2020,
    apply_matrix,
    camera_rgb_to_lin_rec2020,
    camera_to_lin_rec2020_matrix,
    lin_srgb_to_lin_rec2020,
)
from library.ops.develop import auto_exposure_ev, develop_camera_rgb
from library.ops.levels import quantize
from library.ops.tiles import Tile
from library.ops.transfer import srgb_decode
from workloads.evaluations.darktable import develop_with_darktable
from workloads.evaluations.prepared import open_pair
from workloads.evaluations.suites import Develop, Sample
from workloads.suite import centre, color_matrix, demosaiced, read_truth, unsaturated

METRICS = {
    "psnr": "PSNR, developed (dB)",
    "ms_ssim": "MS-SSIM, developed",
    "psnr.linear": "PSNR, linear (dB)",
    "psnr.aligned": "PSNR, developed, aligned (dB)",
    "ms_ssim.aligned": "MS-SSIM, developed, aligned",
    "psnr.linear.aligned": "PSNR, linear, aligned (dB)",
    "psnr.picture": "PSNR, picture (dB)",
    "ms_ssim.picture": "MS-SSIM, picture",
}
"""What `judge` gives, and what people call it."""
DOMAINS = (
    "Developed: sRGB primaries and curve, clipped to [0, 1], peak 1, at the raw's own exposure. "
    "Linear: linear Rec.2020, unclipped, peak 1, the sensor's white."
)
ALIGNED_DOMAIN = (
    "Aligned: the same after one factor per image has brought the output's mean in camera RGB to the truth's."
)
PICTURE_DOMAINS: dict[Develop, str] = {
    "none": "",
    "ours": "white balance, exposure that suits the truth, sRGB",
    "darktable": "by darktable's defaults, of a linear DNG",
}
"""How a picture is developed to be looked at."""
MASK = "Pixels whose truth saturates do not count, nor what a prepared pair's mask leaves out."
NOISY = "noisy"
LABELS = {
    NOISY: "input",
    "gaussian": "Gaussian",
    "bilateral": "bilateral",
    "wavelet": "wavelet BayesShrink",
    "nlm": "non-local means",
    "bm3d": "BM3D",
}
"""Of methods that have names of their own."""
Role = Literal["noisy", "baseline", "ours"]


class Scene:
    """A noisy image, its truth, and the centre crop that all methods are compared on.

    A display picture is the raw of a camera whose colours are Rec.2020's own, balanced, and has no mosaic.

    crop      pixels a side; None for the whole
    prepared  folder that a prepared pair lies in
    raises    RawFileError, ImageFileError for files that cannot be compared; DataError for a pair that is not there
    """

    def __init__(
        self, sample: Sample, *, of_pictures: bool, noise_free: bool, crop: int | None, prepared: str | None = None
    ) -> None:
        self.sample = sample
        self.raw: RawImage | None = None
        valid: Tensor | None = None
        if of_pictures:
            self._noisy, whole = _linear_picture(sample.noisy), _linear_picture(sample.truth)
            if self._noisy.shape != whole.shape:
                raise ImageFileError(sample.truth, f"and {sample.noisy} differ in size: give the same pixels")
            self.matrix = XYZ_TO_LIN_REC2020[None]
        else:
            if prepared is None or sample.pair is None:
                raw = read_raw(sample.noisy)
                whole = read_truth(Path(sample.truth), raw)
            else:
                raw, whole, valid = open_pair(prepared, sample.pair)
            self.raw = _without_noise(raw, whole) if noise_free else raw
            self.matrix = color_matrix(raw)
        height, width = whole.shape[-2:]
        if crop is None and min(height, width) < MS_SSIM_SMALLEST_SIDE:
            raise RawFileError(sample.noisy, f"is {width} x {height} px, and MS-SSIM needs more than 160 a side")
        spans = (slice(None), slice(None)) if crop is None else centre(height, width, crop, sample.noisy)
        self._spans = spans
        self.megapixels = height * width / 1e6
        self.truth = self.crop(whole)
        self.mask = (
            (self.truth < 1).all(dim=1, keepdim=True).float() if self.raw is None else unsaturated(self.truth, self.raw)
        )
        if valid is not None:
            self.mask *= self.crop(valid)
        if not self.mask.any():
            raise ImageFileError(
                sample.truth, "is white all over its centre, or nothing counts there, so there is nothing to compare"
            )

    def crop(self, whole: Tensor) -> Tensor:
        """What of a (1, 3, H, W) picture is compared."""
        return whole[..., self._spans[0], self._spans[1]]

    def demosaiced(self) -> Tensor:
        """(1, 3, H, W) camera RGB of the whole noisy image, made anew each time."""
        return self._noisy if self.raw is None else demosaiced(self.raw)

    @cached_property
    def noisy(self) -> Tensor:
        """Its crop."""
        return self.crop(self.demosaiced())

    @property
    def camera(self) -> str | None:
        return self.sample.camera or (self.raw.metadata().camera or None if self.raw else None)

    @property
    def iso(self) -> float | None:
        return self.sample.iso or (self.raw.iso if self.raw else None)

    @property
    def _color(self) -> dict[str, Any]:
        if self.raw is None:
            return {"as_shot_white_balance": None, "xyz_to_camera": XYZ_TO_LIN_REC2020}
        return {"as_shot_white_balance": self.raw.as_shot_white_balance, "xyz_to_camera": self.raw.xyz_to_camera}

    @cached_property
    def _exposure_ev(self) -> float:
        """A display picture is exposed already."""
        return 0.0 if self.raw is None else auto_exposure_ev(self.truth, **self._color)

    def developed(self, camera_rgb: Tensor) -> Tensor:
        """(1, 3, h, w) camera RGB -> sRGB in 256 steps, in [0, 1]; all at the exposure that suits the truth."""
        srgb = develop_camera_rgb(camera_rgb, exposure_ev=self._exposure_ev, **self._color)
        return (srgb * 255).round() / 255

    @cached_property
    def truth_by_darktable(self) -> Tensor:
        """(1, 3, h, w) sRGB, as `develop_with_darktable`."""
        assert self.raw is not None, "darktable is not given pictures"
        return develop_with_darktable(self.truth, self.raw)


def _linear_picture(path: str) -> Tensor:
    """(1, 3, H, W) lin_rec2020 of a display picture; unknown primaries are taken as sRGB's."""
    picture = read_image(path)
    rgb = torch.tensor(picture.rgb).permute(2, 0, 1)[None]
    rgb = srgb_decode(rgb) if picture.encoding == "srgb" else rgb
    return rgb if picture.color_space == "rec2020" else lin_srgb_to_lin_rec2020(rgb)


def _without_noise(raw: RawImage, truth: Tensor) -> RawImage:
    """The raw as a sensor without noise would have recorded the truth, at 16 bits with room below black."""
    counts = sample_cfa(truth[0], raw.cfa) * (OUTPUT_WHITE - OUTPUT_BLACK) + OUTPUT_BLACK
    return dataclasses.replace(
        raw,
        mosaic=quantize(counts).numpy(),
        black_level=np.full((2, 2), float(OUTPUT_BLACK), np.float32),
        white_level=OUTPUT_WHITE,
        camera_white_level=None,
    )


# --- judging ----------------------------------------------------------------------------------------------------------


def judge(output: Tensor, truth: Tensor, mask: Tensor, xyz_to_camera: Tensor) -> dict[str, float]:
    """`compare_camera_rgb` and `compare_aligned`."""
    compared = (compare(output, truth, mask, xyz_to_camera) for compare in (compare_camera_rgb, compare_aligned))
    return {name: value for metrics in compared for name, value in metrics.items()}


def judge_picture(scene: Scene, camera_rgb: Tensor, develop: Develop) -> dict[str, float]:
    """Of a picture as it is looked at: `psnr.picture` and `ms_ssim.picture`; nothing where it is not developed.

    camera_rgb  (1, 3, h, w), the crop
    raises      ImageFileError for what darktable cannot develop
    """
    if develop == "none":
        return {}
    if develop == "darktable":
        assert scene.raw is not None, "darktable is not given pictures"
        picture, truth = develop_with_darktable(camera_rgb, scene.raw), scene.truth_by_darktable
    else:
        picture, truth = scene.developed(camera_rgb), scene.developed(scene.truth)
    similarity = float(ms_ssim(picture, truth, scene.mask))
    return {"psnr.picture": float(psnr(picture, truth, scene.mask)), "ms_ssim.picture": similarity}


class Found(NamedTuple):
    """What a method makes of an image.

    picture     (1, 3, h, w) camera RGB of the crop
    metrics     by the names of `METRICS`
    seconds     from the mosaic, or for a classical denoiser from the demosaiced picture
    megapixels  that took them
    parameters  chosen against the truth, by metric
    """

    picture: Tensor
    metrics: Mapping[str, float]
    seconds: float
    megapixels: float
    parameters: Mapping[str, Mapping[str, float]]


class Method(Protocol):
    """A row of the tables."""

    @property
    def name(self) -> str: ...

    @property
    def role(self) -> Role: ...

    @property
    def label(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def identity(self) -> str:
        """All of it that determines a result: same identity, same numbers."""
        ...

    @property
    def takes_pictures(self) -> bool:
        """Whether it can be given a display picture, and not only raws."""
        ...

    def run(self, scene: Scene) -> Found: ...

    def picture(self, scene: Scene, parameters: Mapping[str, float]) -> Tensor:
        """Only the picture, with parameters that `run` found best."""
        ...


# --- what there is without learning -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Noisy:
    """The input as it is."""

    name: str = NOISY
    role: Role = "noisy"
    takes_pictures: bool = True

    @property
    def label(self) -> str:
        return LABELS[self.name]

    @property
    def description(self) -> str:
        return "Malvar demosaic of the raw; the picture itself where there is no raw"

    @property
    def identity(self) -> str:
        return "malvar"

    def run(self, scene: Scene) -> Found:
        start = time.perf_counter()
        picture = scene.crop(scene.demosaiced())
        seconds = time.perf_counter() - start
        metrics = judge(picture, scene.truth, scene.mask, scene.matrix)
        return Found(picture, metrics, seconds, scene.megapixels, {})

    def picture(self, scene: Scene, parameters: Mapping[str, float]) -> Tensor:
        return scene.noisy


@dataclasses.dataclass(frozen=True)
class Classical:
    """A classical denoiser at its best, on the crop."""

    name: Baseline
    role: Role = "baseline"
    takes_pictures: bool = True

    @property
    def label(self) -> str:
        return LABELS[self.name]

    @property
    def description(self) -> str:
        return "Of the demosaiced picture, stabilised; parameters chosen against the truth, for each image and metric"

    @property
    def identity(self) -> str:
        package = "bm3d" if self.name == "bm3d" else "scikit-image"
        return f"{self.name} {package} {version(package)}"

    def run(self, scene: Scene) -> Found:
        arguments = (scene.noisy, scene.truth, scene.mask, scene.matrix)
        best = best_classical(*arguments, methods=[self.name], compare=judge)[self.name]
        megapixels = scene.noisy[0, 0].numel() / 1e6
        return Found(best.picture, best.metrics, best.seconds, megapixels, best.parameters)

    def picture(self, scene: Scene, parameters: Mapping[str, float]) -> Tensor:
        return classical_picture(self.name, dict(parameters), scene.noisy, scene.truth, scene.mask)


# --- networks ---------------------------------------------------------------------------------------------------------


class _Network:
    """What all networks have in common: they are given the whole image, and their picture is compared as it is."""

    role: Role = "ours"
    name: str

    @property
    def label(self) -> str:
        return self.name

    def denoised(self, scene: Scene) -> Tensor:
        """(1, 3, H, W) camera RGB of the whole image."""
        raise NotImplementedError(f"{type(self).__name__} must say how it denoises")

    def run(self, scene: Scene) -> Found:
        start = time.perf_counter()
        whole = self.denoised(scene)
        seconds = time.perf_counter() - start
        picture = scene.crop(whole)
        return Found(picture, judge(picture, scene.truth, scene.mask, scene.matrix), seconds, scene.megapixels, {})

    def picture(self, scene: Scene, parameters: Mapping[str, float]) -> Tensor:
        return scene.crop(self.denoised(scene))


class RawBundle(_Network):
    """A bundle that takes mosaics."""

    takes_pictures = False

    def __init__(self, name: str, bundle: Bundle, *, tile: int, precision: Precision, device: str) -> None:
        self.name, self.bundle = name, bundle
        self.engine = Engine(bundle, tile=tile, precision=precision, device=device)

    @property
    def description(self) -> str:
        return f"Bundle of a raw denoiser: {_facts(self.bundle)}"

    @property
    def identity(self) -> str:
        return f"{self.bundle.digest} {self.engine.precision}"

    def denoised(self, scene: Scene) -> Tensor:
        assert scene.raw is not None, "a raw denoiser is not given pictures"
        return torch.from_numpy(denoise_raw(scene.raw, self.engine)).permute(2, 0, 1)[None]


class RgbBundle(_Network):
    """A bundle that takes linear pictures; a raw is demosaiced (Malvar) for it."""

    takes_pictures = True

    def __init__(self, name: str, bundle: Bundle, *, tile: int, precision: Precision, device: str) -> None:
        self.name, self.bundle = name, bundle
        self.model = bundle.model.to(torch.device(device))
        self.tile = tile // self.model.lattice * self.model.lattice
        self.precision: Precision = precision

    @property
    def description(self) -> str:
        return f"Bundle of a denoiser of linear pictures: {_facts(self.bundle)}; raws are demosaiced (Malvar) for it"

    @property
    def identity(self) -> str:
        return f"{self.bundle.digest} {self.precision}"

    def denoised(self, scene: Scene) -> Tensor:
        lin_rec2020 = camera_rgb_to_lin_rec2020(scene.demosaiced(), xyz_to_camera=scene.matrix)[0]
        height, width = lin_rec2020.shape[1:]
        lattice = self.model.lattice
        padded = mirror_pad(mirror_pad(lin_rec2020, 1, 0, -height % lattice), 2, 0, -width % lattice)

        def window(tile: Tile) -> Tensor:
            return padded[:, slice(*tile.window_rows), slice(*tile.window_columns)]

        output = torch.empty_like(padded)
        sides = padded.shape[1], padded.shape[2]
        for patch in run_tiled(self.model, *sides, window, tile=self.tile, precision=self.precision):
            rows, columns = patch.pixels.shape[1:]
            output[:, patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.pixels
        if self.bundle.gain == "arbitrary":
            own = float(output.mean())
            if not (own > 0 and float(padded.mean()) > 0):
                raise ImageFileError(scene.sample.noisy, "has no brightness that this bundle's output could take")
            output *= float(padded.mean()) / own
        to_camera = torch.linalg.inv(camera_to_lin_rec2020_matrix(scene.matrix))
        return apply_matrix(output[None, :, :height, :width], to_camera)


class OnnxFile(_Network):
    """A file of darktable's Bayer contract, on the CPU."""

    takes_pictures = False

    def __init__(self, name: str, path: str, *, tile: int, num_threads: int) -> None:
        self.name = name
        self.denoiser = OnnxDenoiser(path, tile=tile, num_threads=num_threads)

    @property
    def description(self) -> str:
        facts = f"sha256:{self.denoiser.digest[:16]}, {self.denoiser.gain} gain, onnxruntime {self.denoiser.version}"
        return f"ONNX file {Path(self.denoiser.path).name}, {facts}"

    @property
    def identity(self) -> str:
        return self.denoiser.identity

    def denoised(self, scene: Scene) -> Tensor:
        assert scene.raw is not None, "a raw denoiser is not given pictures"
        return self.denoiser.camera_rgb(scene.raw)


def network(name: str, path: str, *, tile: int, precision: Precision, device: str) -> RawBundle | RgbBundle:
    """Of a bundle, whichever input it takes. Raises `BundleError`."""
    bundle = load_bundle(path)
    kind = RgbBundle if bundle.model.in_channels == 3 else RawBundle
    return kind(name, bundle, tile=tile, precision=precision, device=device)


def _facts(bundle: Bundle) -> str:
    parameters = f"{bundle.manifest['num_parameters']:,} parameters"
    return f"{bundle.name}, sha256:{bundle.digest[:16]}, {bundle.manifest['model']['kind']}, {parameters}"


# --- what it costs ----------------------------------------------------------------------------------------------------


class MemoryMeter:
    """The most memory that this process holds from now on, above what it holds now; None where the system does not say
    so (it is Linux's).

    What earlier work has freed goes back to the system first: it would be taken again unseen.
    """

    def __init__(self) -> None:
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak starts anew
            self._before = _held("VmRSS")
        except OSError:
            self._before = None

    def bytes(self) -> int | None:
        peak = _held("VmHWM") if self._before is not None else None
        return None if self._before is None or peak is None else peak - self._before


def _held(field: str) -> int | None:
    """Bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next((line.split()[1] for line in lines if line.startswith(f"{field}:")), None)
    return None if kib is None else int(kib) * 1024


def machine(num_threads: int, device: str) -> str:
    """What speeds were measured on, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    return f"{name}, {num_threads} {'thread' if num_threads == 1 else 'threads'}"


def write_pictures(folder: Path, scene: Scene, pictures: Mapping[str, Tensor]) -> None:
    """`<label>.png` of each (1, 3, h, w) camera RGB, developed, all at the exposure that suits the truth."""
    for label, camera_rgb in pictures.items():
        codes = (scene.developed(camera_rgb)[0] * 255).round().byte().permute(1, 2, 0)
        write_png(folder / f"{label}.png", np.ascontiguousarray(codes.numpy()))
