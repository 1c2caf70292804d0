"""Ways to make a file of a raw or a picture, and a picture of that file: ours, and what people would otherwise use."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import imagecodecs
import numpy as np
import OpenEXR
import torch
from torch import Tensor

from library.files.raw import RawImage
from library.files.sgr.container import SgrFile
from library.inference.codec import CodecEngine
from library.inference.compressors import ladder
from library.inference.compressors.base import (
    Compressor,
    LosslessCompressor,
    MosaicCompressor,
    PictureCompressor,
    StabilizedPicture,
)
from library.inference.compressors.display import DisplayPicture
from library.inference.compressors.jpeg_xl import JpegXl
from library.inference.denoise import denoise_raw, denoised_mosaic
from library.inference.engine import Engine
from library.inference.subjects import subject_of_raw
from library.ops.color import apply_matrix, camera_to_lin_rec2020_matrix
from library.ops.demosaic import demosaic_malvar
from workloads.rd_scenes import RawScene, Scene
from workloads.suite import demosaiced

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


class Coded(NamedTuple):
    """A raw or a picture as a file, and the file as a picture."""

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


T = TypeVar("T")


class _LastMade(Generic[T]):
    """What is made of a raw, and the seconds it took. The last is kept: a scene's settings come one after another."""

    def __init__(self, make: Callable[[RawImage], T]) -> None:
        self._make = make
        self._last: tuple[Scene, T, float] | None = None

    def __call__(self, scene: Scene) -> tuple[T, float]:
        assert isinstance(scene, RawScene), "a picture has no noise to remove"
        if self._last is None or self._last[0] is not scene:
            self._last = None  # or two would be in memory
            start = time.perf_counter()
            made = self._make(scene.raw)
            self._last = (scene, made, time.perf_counter() - start)
        return self._last[1:]


class Denoised:
    """What a denoiser's bundle makes of the raw: a picture, or a mosaic again for a codec of mosaics."""

    level = "denoiser"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._picture = _LastMade(lambda raw: torch.from_numpy(denoise_raw(raw, engine)).permute(2, 0, 1)[None])
        self._mosaic = _LastMade(lambda raw: denoised_mosaic(raw, engine))

    @property
    def identity(self) -> str:
        return self.engine.bundle.digest

    @property
    def description(self) -> str:
        return f"The raw, denoised by {self.engine.bundle.name} (sha256:{self.engine.bundle.digest[:16]})"

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        return self._picture(scene)

    def mosaic(self, scene: Scene) -> tuple[RawImage, float]:
        """A raw at 16 bits, as `stillgrain encode --denoiser` codes it, and the seconds it took."""
        return self._mosaic(scene)


@dataclass(frozen=True)
class CodecMethod:
    """A codec's bundle at some of its qualities: through a file, as anybody would.

    strength  1 removes the noise, 0 keeps it
    denoised  what the codec is given in place of the raw
    """

    name: str
    engine: CodecEngine
    qualities: tuple[int, ...]
    strength: float
    denoised: Denoised | None = None

    @property
    def description(self) -> str:
        kept = "decodes to a clean picture" if self.strength else "decodes to a picture as noisy as what it was made of"
        bundle = f"Bundle {self.engine.bundle.name}, sha256:{self.engine.bundle.digest[:16]}; {kept}"
        return bundle if self.denoised is None else f"{self.denoised.description}, as a mosaic. {bundle}"

    @property
    def identity(self) -> str:
        own = f"{self.engine.bundle.digest} strength {self.strength:g}"
        return own if self.denoised is None else f"{own} after {self.denoised.identity}"

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
        engine, raw, seconds = self.engine, None, 0.0
        if self.denoised is not None:
            raw, seconds = self.denoised.mosaic(scene)
        with tempfile.TemporaryDirectory() as folder:
            path, start = Path(folder, "coded.sgr"), time.perf_counter()
            subject = scene.subject(engine.side) if raw is None else subject_of_raw(raw, engine.side)
            encoded = engine.encode(subject, path, quality=quality, bpp=bpp, strength=self.strength)
            middle = time.perf_counter()
            picture = torch.empty(1, 3, subject.height, subject.width)
            with SgrFile(path) as file:
                y_hat, _ = engine.latents(file, range(file.header.num_tiles))
                region = (0, 0, subject.height, subject.width)
                for top, left, pixels in engine.camera_rgb(file.header, y_hat, region):
                    picture[0, :, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
            end = time.perf_counter()
        return Coded(encoded.sizes.counted, picture, seconds + middle - start, end - middle)


# --- what people would otherwise use ----------------------------------------------------------------------------------

C = TypeVar("C", bound=Compressor)


@dataclass(frozen=True)
class _Ladder(Generic[C]):
    """A classical codec at the settings that make its curve."""

    name: str
    members: tuple[C, ...]

    @property
    def identity(self) -> str:
        # Other versions of the libraries give other bytes.
        return f"{self.name} imagecodecs {imagecodecs.__version__} OpenEXR {OpenEXR.__version__}"

    @property
    def settings(self) -> list[str]:
        return [member.name for member in self.members]

    def available(self) -> str | None:
        return self.members[0].available()

    def member(self, name: str) -> C:
        return next(member for member in self.members if member.name == name)


class MosaicMethod(_Ladder[MosaicCompressor]):
    """The noisy mosaic through a lossy codec; demosaiced when it is decoded."""

    description = "Colour planes of the noisy mosaic, stabilised; demosaiced (Malvar) after decoding"

    def code(self, scene: Scene, setting: str) -> Coded:
        assert isinstance(scene, RawScene)
        # It separates planes, and so takes a tile of any phase: the planes are then called by other letters.
        size, mosaic, times = _through(self.member(setting), scene.mosaic.numpy())
        return Coded(size, demosaic_malvar(torch.from_numpy(mosaic), cfa=scene.raw.cfa)[None], *times)


class LosslessMethod(_Ladder[LosslessCompressor]):
    """The raw's own numbers through a lossless codec."""

    description = "Colour planes of the noisy mosaic as they are, lossless"

    def code(self, scene: Scene, setting: str) -> Coded:
        assert isinstance(scene, RawScene)
        size, mosaic, times = _through(self.member(setting), scene.raw.mosaic)
        return Coded(size, demosaiced(dataclasses.replace(scene.raw, mosaic=mosaic)), *times)


class Source(Protocol):
    """Where a picture comes from that is then compressed."""

    @property
    def identity(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def level(self) -> str | None:
        """What its quality is called where no file is made of it; None where it is the truth itself."""
        ...

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        """(1, 3, H, W) camera RGB, and the seconds it took."""
        ...


class Noisy:
    """The demosaiced raw."""

    identity = "noisy"
    description = "The noisy raw, demosaiced (Malvar)"
    level = "noisy input"

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        assert isinstance(scene, RawScene)
        return scene.noisy, 0.0


class Original:
    """The picture itself."""

    identity = "original"
    description = "The picture"
    level = None

    def __call__(self, scene: Scene, /) -> tuple[Tensor, float]:
        return scene.truth, 0.0


@dataclass(frozen=True)
class PictureMethod(_Ladder[PictureCompressor]):
    """A picture through a codec of pictures, in linear Rec.2020: balanced colours, for which such codecs are made.

    They take half the bytes of unbalanced camera RGB for equal quality.
    """

    source: Source

    @property
    def description(self) -> str:
        return f"{self.source.description}, then this codec"

    @property
    def identity(self) -> str:
        return f"{super().identity} {self.source.identity}"

    def code(self, scene: Scene, setting: str) -> Coded:
        return self.code_by(scene, self.member(setting))

    def code_by(self, scene: Scene, compressor: PictureCompressor) -> Coded:
        camera_rgb, seconds = self.source(scene)
        to_lin_rec2020 = camera_to_lin_rec2020_matrix(scene.matrix)[0]
        lin_rec2020 = apply_matrix(camera_rgb[0], to_lin_rec2020).permute(1, 2, 0).contiguous().numpy()
        size, decoded, (encoding, decoding) = _through(compressor, lin_rec2020)
        back = apply_matrix(torch.from_numpy(decoded).permute(2, 0, 1), torch.linalg.inv(to_lin_rec2020))
        return Coded(size, back[None].contiguous(), seconds + encoding, decoding)


def jpeg_xl_near(method: PictureMethod, scene: Scene, bpp: float) -> Coded:
    """As JPEG XL, which is the method's codec, at the distance whose bits per photosite come nearest."""
    member = method.members[0]
    assert isinstance(member, StabilizedPicture | DisplayPicture)
    low, high = 0.05, 25.0  # bytes fall as the distance rises
    found: list[Coded] = []
    for _ in range(8):
        distance = (low * high) ** 0.5
        found.append(method.code_by(scene, dataclasses.replace(member, codec=JpegXl(distance))))
        low, high = (distance, high) if found[-1].bpp(scene) > bpp else (low, distance)
    return min(found, key=lambda coded: abs(np.log(coded.bpp(scene) / bpp)))


def methods_of_raws(
    codecs: Mapping[str, CodecEngine],
    qualities: tuple[int, ...],
    baselines: Sequence[Baseline],
    denoiser: Engine | None,
) -> list[Method]:
    """Every curve there is to be measured over raws, ours first."""
    methods: list[Method] = [*_codecs(codecs, qualities)]
    pictures = _families(ladder("picture"), baselines)
    methods += [PictureMethod(family, members, Noisy()) for family, members in pictures.items()]
    if denoiser is not None:
        denoised = Denoised(denoiser)
        methods += [CodecMethod(DENOISED + name, engine, qualities, 1.0, denoised) for name, engine in codecs.items()]
        methods += [PictureMethod(DENOISED + family, members, denoised) for family, members in pictures.items()]
    methods += [MosaicMethod(family, members) for family, members in _families(ladder("mosaic"), baselines).items()]
    return methods + [
        LosslessMethod(family, members) for family, members in _families(ladder("lossless"), baselines).items()
    ]


def methods_of_pictures(
    codecs: Mapping[str, CodecEngine], qualities: tuple[int, ...], baselines: Sequence[Baseline]
) -> list[Method]:
    """Every curve there is to be measured over display pictures, ours first."""
    pictures = _families(ladder("display"), baselines)
    return [
        *_codecs(codecs, qualities),
        *(PictureMethod(family, members, Original()) for family, members in pictures.items()),
    ]


def _codecs(codecs: Mapping[str, CodecEngine], qualities: tuple[int, ...]) -> list[CodecMethod]:
    # Only a codec that was trained for it can keep the noise.
    many = {name: engine for name, engine in codecs.items() if engine.model.num_qualities > 1}
    return [
        *(CodecMethod(name, engine, qualities, 1.0) for name, engine in codecs.items()),
        *(CodecMethod(name + NOISE_KEPT, engine, qualities, 0.0) for name, engine in many.items()),
    ]


def _families(members: Sequence[C], baselines: Sequence[Baseline]) -> dict[str, tuple[C, ...]]:
    starts = tuple(BASELINES[baseline] for baseline in baselines)
    families: dict[str, list[C]] = {}
    for member in members:
        if starts and member.family.startswith(starts):
            families.setdefault(member.family, []).append(member)
    return {family: tuple(found) for family, found in families.items()}


def _through(compressor: Compressor, image: np.ndarray) -> tuple[int, np.ndarray, tuple[float, float]]:
    """Bytes, the image that comes back, and the seconds of both ways."""
    start = time.perf_counter()
    content = compressor.compress(image)
    middle = time.perf_counter()
    decoded = compressor.decompress(content)
    return len(content), decoded, (middle - start, time.perf_counter() - middle)
