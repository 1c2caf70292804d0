"""Ways to make a file of a raw and a picture of that file: bundles of codecs, and what people would otherwise use.

A picture is judged by the truth wherever it comes from; how true it is to the noise, by the mosaic that was recorded.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import imagecodecs
import numpy as np
import OpenEXR
import torch
from torch import Tensor

from library.files.raw import RawImage, read_raw
from library.files.sgr.container import SgrFile
from library.inference.codec import CodecEngine
from library.inference.compressors import ladder
from library.inference.compressors.base import (
    LosslessCompressor,
    MosaicCompressor,
    PictureCompressor,
    StabilizedPicture,
)
from library.inference.compressors.jpeg_xl import JpegXl
from library.inference.denoise import denoise_raw
from library.inference.engine import Engine
from library.inference.subjects import subject_of_raw
from library.metrics import compare_camera_rgb, psnr
from library.ops.cfa import sample_cfa
from library.ops.color import apply_matrix, camera_to_lin_rec2020_matrix
from library.ops.demosaic import demosaic_malvar
from library.ops.levels import normalize_levels
from library.ops.transfer import root_encode
from workloads.suite import centre, color_matrix, demosaiced, read_truth, scene_linear, unsaturated

Baseline = Literal["jpeg_xl", "jpeg_2000", "avif", "jpeg_ls", "htj2k", "exr_dwaa"]
BASELINES: dict[Baseline, str] = {
    "jpeg_xl": "JPEG XL",
    "jpeg_2000": "JPEG 2000",
    "avif": "AVIF 12-bit",
    "jpeg_ls": "JPEG-LS",
    "htj2k": "HTJ2K",
    "exr_dwaa": "EXR half DWAA",
}
"""By what the names of its families begin with."""
NOISY_JPEG_XL, DENOISED = "JPEG XL", "denoise, then "
DENOISED_JPEG_XL = DENOISED + NOISY_JPEG_XL
NOISE_KEPT = ", noise kept"
METRICS = {
    "ms_ssim": "MS-SSIM, developed",
    "psnr": "PSNR, developed",
    "psnr.linear": "PSNR, linear",
    "psnr.stabilized": "PSNR, stabilised",
    "psnr.stabilized_to_noisy": "PSNR to the noisy mosaic, stabilised",
    "psnr.linear_to_noisy": "PSNR to the noisy mosaic, linear",
}
"""What `judge` gives, and what people call it. The last two are no measure of quality but of fidelity to the noise."""


class Scene:
    """A raw, the part of it that is coded, and its truth.

    crop    photosites a side of the part, its centre; None for the whole
    raises  RawFileError, ImageFileError for files that cannot be compared
    """

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


def judge(scene: Scene, camera_rgb: Tensor) -> dict[str, float]:
    """The `METRICS` of a picture.

    `psnr`, `ms_ssim`, `psnr.linear`  as of `compare_camera_rgb`
    `psnr.stabilized`                 of the root of camera RGB (`root_encode`), unclipped, peak 1, to the truth
    `psnr.*_to_noisy`                 to the recorded mosaic, at its photosites: camera values, all of them count

    camera_rgb  (1, 3, H, W)
    """
    sampled, noisy = sample_cfa(camera_rgb[0], scene.raw.cfa)[None, None], scene.mosaic[None, None]
    everywhere = torch.ones_like(noisy)
    return {
        **compare_camera_rgb(camera_rgb, scene.truth, scene.mask, scene.matrix),
        "psnr.stabilized": float(psnr(root_encode(camera_rgb), root_encode(scene.truth), scene.mask)),
        "psnr.stabilized_to_noisy": float(psnr(root_encode(sampled), root_encode(noisy), everywhere)),
        "psnr.linear_to_noisy": float(psnr(sampled, noisy, everywhere)),
    }


class Coded(NamedTuple):
    """A raw as a file, and the file as a picture."""

    num_bytes: int
    camera_rgb: Tensor
    """(1, 3, H, W)"""
    encoding_time: float
    """s, from the mosaic or the demosaiced picture to bytes; with denoising where that comes first."""
    decoding_time: float
    """s, from bytes to what was coded; a mosaic's demosaic is left out."""

    def bpp(self, scene: Scene) -> float:
        return 8 * self.num_bytes / scene.photosites


class Method(Protocol):
    """One curve."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def identity(self) -> str:
        """With a setting, all of it that determines a result: same identity, same numbers."""
        ...

    @property
    def settings(self) -> Sequence[str]: ...

    def available(self) -> str | None:
        """None, or why it cannot run here."""
        ...

    def code(self, scene: Scene, setting: str) -> Coded: ...


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodecMethod:
    """A codec's bundle at some of its qualities: through a file, as anybody would.

    strength  1 removes the noise, 0 keeps it
    """

    name: str
    engine: CodecEngine
    qualities: tuple[int, ...]
    strength: float

    @property
    def description(self) -> str:
        kept = "decodes to a clean picture" if self.strength else "decodes to a picture as noisy as the raw"
        return f"Bundle {self.engine.bundle.name}, sha256:{self.engine.bundle.digest[:16]}; {kept}"

    @property
    def identity(self) -> str:
        return f"{self.engine.bundle.digest} strength {self.strength:g}"

    @property
    def settings(self) -> list[str]:
        # A codec of one rate makes the same file whatever quality is asked for.
        qualities = self.qualities if self.engine.model.num_qualities > 1 else (0,)
        return [f"q{quality}" for quality in qualities]

    def available(self) -> str | None:
        return None

    def code(self, scene: Scene, setting: str) -> Coded:
        return self._code(scene, quality=int(setting.removeprefix("q")))

    def near(self, scene: Scene, bpp: float) -> Coded:
        """At the quality whose bits per photosite come nearest, 0 or 63 where none comes near."""
        if self.engine.model.num_qualities == 1:
            return self._code(scene, quality=0)
        ends = [self._code(scene, quality=quality) for quality in (0, 63)]
        least, most = (end.bpp(scene) for end in ends)
        if bpp <= least or bpp >= most:
            return ends[bpp >= most]
        return self._code(scene, bpp=bpp)

    def _code(self, scene: Scene, *, quality: int | None = None, bpp: float | None = None) -> Coded:
        raw, engine = scene.raw, self.engine
        with tempfile.TemporaryDirectory() as folder:
            path, start = Path(folder, "raw.sgr"), time.perf_counter()
            encoded = engine.encode(
                subject_of_raw(raw, engine.side), path, quality=quality, bpp=bpp, strength=self.strength
            )
            middle = time.perf_counter()
            picture = torch.empty(1, 3, raw.height, raw.width)
            with SgrFile(path) as file:
                y_hat, _ = engine.latents(file, range(file.header.num_tiles))
                for top, left, pixels in engine.camera_rgb(file.header, y_hat, (0, 0, raw.height, raw.width)):
                    picture[0, :, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
            end = time.perf_counter()
        return Coded(encoded.sizes.counted, picture, middle - start, end - middle)


# --- what people would otherwise use ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MosaicMethod:
    """The noisy mosaic through a lossy codec; demosaiced when it is decoded."""

    name: str
    members: tuple[MosaicCompressor, ...]

    @property
    def description(self) -> str:
        return "Colour planes of the noisy mosaic, stabilised; demosaiced (Malvar) after decoding"

    @property
    def identity(self) -> str:
        return _identity(self.name)

    @property
    def settings(self) -> list[str]:
        return [member.name for member in self.members]

    def available(self) -> str | None:
        return self.members[0].available()

    def code(self, scene: Scene, setting: str) -> Coded:
        # It separates planes, and so takes a tile of any phase: the planes are then called by other letters.
        size, mosaic, times = _through(_named(self.members, setting), scene.mosaic.numpy())
        return Coded(size, demosaic_malvar(torch.from_numpy(mosaic), cfa=scene.raw.cfa)[None], *times)


@dataclass(frozen=True)
class LosslessMethod:
    """The raw's own numbers through a lossless codec."""

    name: str
    members: tuple[LosslessCompressor, ...]

    @property
    def description(self) -> str:
        return "Colour planes of the noisy mosaic as they are, lossless"

    @property
    def identity(self) -> str:
        return _identity(self.name)

    @property
    def settings(self) -> list[str]:
        return [member.name for member in self.members]

    def available(self) -> str | None:
        return self.members[0].available()

    def code(self, scene: Scene, setting: str) -> Coded:
        raw = scene.raw
        size, mosaic, times = _through(_named(self.members, setting), raw.mosaic)
        black_level, white_level = torch.from_numpy(raw.black_level), float(raw.white_level)
        linear = normalize_levels(torch.from_numpy(mosaic), black_level, white_level)
        return Coded(size, demosaic_malvar(linear, cfa=raw.cfa)[None], *times)


class Source(Protocol):
    """Where a picture comes from that is then compressed."""

    @property
    def identity(self) -> str: ...

    @property
    def description(self) -> str: ...

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        """(1, 3, H, W) camera RGB, and the seconds it took."""
        ...


class Noisy:
    """The demosaiced raw."""

    identity = "noisy"
    description = "The noisy raw, demosaiced (Malvar)"

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        return scene.noisy, 0.0


class Denoised:
    """What a denoiser's bundle makes of the raw. The last one is kept: a scene's settings come one after another."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._last: tuple[Scene, Tensor, float] | None = None

    @property
    def identity(self) -> str:
        return self.engine.bundle.digest

    @property
    def description(self) -> str:
        return f"The raw, denoised by {self.engine.bundle.name} (sha256:{self.engine.bundle.digest[:16]})"

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        if self._last is None or self._last[0] is not scene:
            start = time.perf_counter()
            picture = torch.from_numpy(denoise_raw(scene.raw, self.engine)).permute(2, 0, 1)[None]
            self._last = (scene, picture, time.perf_counter() - start)
        return self._last[1:]


@dataclass(frozen=True)
class PictureMethod:
    """A picture through a codec of pictures, in linear Rec.2020: balanced colours, for which such codecs are made.

    They take half the bytes of unbalanced camera RGB for equal quality.
    """

    name: str
    members: tuple[PictureCompressor, ...]
    source: Source

    @property
    def description(self) -> str:
        return f"{self.source.description}, then this codec"

    @property
    def identity(self) -> str:
        return f"{_identity(self.name)} {self.source.identity}"

    @property
    def settings(self) -> list[str]:
        return [member.name for member in self.members]

    def available(self) -> str | None:
        return self.members[0].available()

    def code(self, scene: Scene, setting: str) -> Coded:
        return self.code_by(scene, _named(self.members, setting))

    def code_by(self, scene: Scene, compressor: PictureCompressor) -> Coded:
        camera_rgb, seconds = self.source(scene)
        to_lin_rec2020 = camera_to_lin_rec2020_matrix(scene.matrix)[0]
        lin_rec2020 = apply_matrix(camera_rgb[0], to_lin_rec2020).permute(1, 2, 0).contiguous().numpy()
        size, decoded, (encoding, decoding) = _through(compressor, lin_rec2020)
        back = apply_matrix(torch.from_numpy(decoded).permute(2, 0, 1), torch.linalg.inv(to_lin_rec2020))
        return Coded(size, back[None].contiguous(), seconds + encoding, decoding)


def jpeg_xl_near(method: PictureMethod, scene: Scene, bpp: float) -> Coded:
    """As JPEG XL of the picture of `method`, at the distance whose bits per photosite come nearest."""
    low, high = 0.05, 25.0  # bytes fall as the distance rises
    found: list[Coded] = []
    for _ in range(8):
        distance = (low * high) ** 0.5
        found.append(method.code_by(scene, StabilizedPicture(JpegXl(distance))))
        low, high = (distance, high) if found[-1].bpp(scene) > bpp else (low, distance)
    return min(found, key=lambda coded: abs(np.log(coded.bpp(scene) / bpp)))


def catalogue(
    codecs: Mapping[str, CodecEngine],
    qualities: tuple[int, ...],
    baselines: Sequence[Baseline],
    denoiser: Engine | None,
) -> list[Method]:
    """Every curve there is to be measured, ours first."""
    methods: list[Method] = [CodecMethod(name, engine, qualities, 1.0) for name, engine in codecs.items()]
    # Only a codec that was trained for it can keep the noise.
    methods += [
        CodecMethod(name + NOISE_KEPT, engine, qualities, 0.0)
        for name, engine in codecs.items()
        if engine.model.num_qualities > 1
    ]
    pictures = _families(ladder("picture"), baselines)
    methods += [PictureMethod(family, members, Noisy()) for family, members in pictures.items()]
    if denoiser is not None:
        denoised = Denoised(denoiser)
        methods += [PictureMethod(DENOISED + family, members, denoised) for family, members in pictures.items()]
    methods += [MosaicMethod(family, members) for family, members in _families(ladder("mosaic"), baselines).items()]
    return methods + [
        LosslessMethod(family, members) for family, members in _families(ladder("lossless"), baselines).items()
    ]


class _Member(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...


M = TypeVar("M", bound=_Member)


def _families(members: Sequence[M], baselines: Sequence[Baseline]) -> dict[str, tuple[M, ...]]:
    starts = tuple(BASELINES[baseline] for baseline in baselines)
    families: dict[str, list[M]] = {}
    for member in members:
        if starts and member.family.startswith(starts):
            families.setdefault(member.family, []).append(member)
    return {family: tuple(found) for family, found in families.items()}


def _named(members: Sequence[M], name: str) -> M:
    return next(member for member in members if member.name == name)


def _through(
    compressor: MosaicCompressor | LosslessCompressor | PictureCompressor, image: np.ndarray
) -> tuple[int, np.ndarray, tuple[float, float]]:
    """Bytes, the image that comes back, and the seconds of both ways."""
    start = time.perf_counter()
    content = compressor.compress(image)
    middle = time.perf_counter()
    decoded = compressor.decompress(content)
    return len(content), decoded, (middle - start, time.perf_counter() - middle)


def _identity(name: str) -> str:
    """Of a classical method: other versions of the libraries give other bytes."""
    return f"{name} imagecodecs {imagecodecs.__version__} OpenEXR {OpenEXR.__version__}"
