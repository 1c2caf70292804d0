"""A denoiser applied to a whole image through exact tiles; what it needs of memory has a bound that does not depend on
the image."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from library.bundle import Bundle
from library.errors import ConfigError, RawFileError
from library.files.raw import RawImage
from library.inference.backends.base import BackendName, Precision, is_exact
from library.inference.backends.opening import open_backend
from library.inference.frames import Frame, Noise, frame_of, frame_size, noise_of
from library.inference.strength import FULL, MARGIN, Strength, blend, luminance_matrix, noisy_picture
from library.inference.tile_size import (
    DEFAULT_MEMORY,
    activation_bytes,
    available_memory,
    fitting_tile,
    resident_memory,
)
from library.inference.tiled import Patch, run_tiled
from library.memory import keep_freed_memory
from library.ops.cfa import BAYER_PHASES, cfa_period, sample_cfa, shift_cfa
from library.ops.cfa_planes import CFA_PLANES
from library.ops.highlights import MARGIN as HIGHLIGHT_MARGIN
from library.ops.highlights import keep_clipped
from library.ops.levels import normalize_levels
from library.ops.tiles import Span, Tile

ENGINE_VERSION = "2"
"""Changes whenever the same raw and bundle would give other samples."""
DEFAULT_TILE = 512
"""Model input pixels a side: 1024 photosites, about half a gigabyte of activations for a 32-channel network."""
SMALLEST_TILE = 96
"""Model input pixels a side. PyTorch computes a convolution of up to 20,480 input samples with another kernel, which
rounds differently (`ConvParams::use_mkldnn`). Windows of this size stay above that at every layer of networks from 8
channels up; images of a few dozen rows, and narrower networks, may still differ in the last bit."""
_FIXED_TILES: dict[BackendName, int] = {"torch": DEFAULT_TILE, "onnx": 1024, "openvino": 1024}
"""Of an automatic tile where its size shows in the result, which must not depend on a machine's memory."""
_HIGHLIGHT_ROWS = 60
_OUTPUT_BYTES = 12
"""For each photosite, that whoever takes the picture may hold of it: all of it in float32."""

TileSize = int | Literal["auto"]
"""Model input pixels a side. auto: as large as memory allows where no bit depends on it, else one size for all."""


class Engine:
    """Runs one bundle. In float32 the tile size changes no bit of PyTorch's result, as `verify_tiling` can prove.

    A bundle of arbitrary output gain gets its brightness from the raw, by one factor for the whole image (a factor for
    each tile would show as seams); until that is known, the picture waits in memory or, where it is large, on disk.

    A bundle of CFA planes is told how noisy each photosite is. One strength for luminance and colour is a factor of
    that, so that the network itself leaves noise; only the rest, where the two differ, is a blend.

    What the sensor clipped is never denoised: see `library.ops.highlights`.

    bundle     of packed mosaics, of CFA planes, or of pictures, which get the raw demosaiced
    tile       model input pixels a side, at least `SMALLEST_TILE`, rounded down to the lattice; or "auto"
    precision  of the network; bf16 is about twice as fast where the processor has it, and no longer exact
    device     such as "cpu" or "cuda", of backend torch; the others run on the CPU
    backend    what computes the network; onnx and openvino need the extra [export]
    strength   shares of the noise that are taken away, of luminance and of colour
    ensemble   the mean over the raw's eight mirrored and turned forms, for eight times the work
    memory     bytes that the process may come to, to which an automatic tile keeps; what the caller holds beside the
               picture is not in it, unless it was held before the engine was made
    noise      that a bundle of CFA planes is told of: (a, b) of variance a * x + b, or profiles of cameras; None, or a
               camera that is not among them: as `noise_of` finds it
    raises     BundleError when the bundle takes something else, or when backend, device and precision do not reproduce
               its golden tiles here; ConfigError when the tile is smaller than `SMALLEST_TILE`, for what does not go
               together, and for a package that is not installed
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        tile: TileSize = "auto",
        precision: Precision = "fp32",
        device: str = "cpu",
        backend: BackendName = "torch",
        strength: Strength = FULL,
        ensemble: bool = False,
        memory: int = DEFAULT_MEMORY,
        noise: Noise | None = None,
    ) -> None:
        self.bundle = bundle
        self.noise = noise
        if tile != "auto" and tile < SMALLEST_TILE:
            raise ConfigError(f"tile is {tile}, but must be at least {SMALLEST_TILE}, or rounding would depend on it")
        self.tile: TileSize = tile
        self.precision: Precision = precision
        self.backend: BackendName = backend
        self.strength = strength
        self.ensemble = ensemble
        self.memory = memory
        self._adapts = tile == "auto" and is_exact(backend, precision) and device == "cpu"
        self._bytes_per_pixel = activation_bytes(bundle.model) if self._adapts else 0.0
        if device == "cpu":
            keep_freed_memory()
        self.opened = open_backend(bundle, backend, precision, device=device)
        self.model = bundle.model
        # Now, not before each raw: what one has freed is kept for the next (library/memory.py), and looks taken.
        self._own_bytes = resident_memory()

    def camera_rgb(self, raw: RawImage) -> Iterator[Patch]:
        """The denoised and demosaiced picture, patch by patch.

        yields  patches in the raw's own pixels, each pixel once, row by row: camera RGB, black at 0 and white at 1, no
                white balance, below 0 and above 1 legal
        raises  RawFileError for an X-Trans raw and a bundle of packed planes, and when the bundle's gain is arbitrary
                and the raw has nothing to take its brightness from; while patches come, for what else `frame_of` says
        """
        if self.model.in_channels == 4 and raw.cfa not in BAYER_PHASES:
            raise RawFileError(
                raw.path,
                "is no Bayer raw, and this bundle takes the four planes of one: use a bundle of CFA planes "
                "(model.in_channels 5) or of pictures (3)",
            )
        raw = raw.at_white_level(self.bundle.white_level)
        whole = not self.ensemble and self._blended.is_full
        patches = self._network_output(raw) if whole else self._rectangles(raw)
        if self.bundle.gain != "absolute":
            patches = _at_gain_of(raw, patches, self.memory // 8)
        return (_with_highlights(raw, self._at_strength(raw, patch)) for patch in patches)

    @property
    def _sigma_factor(self) -> float:
        """Of the noise that a bundle of CFA planes is told of."""
        if self.model.in_channels != CFA_PLANES:
            return 1.0
        # At strength 0 the raw itself is wanted, which no network promises: that is for the blend.
        return max(self.strength.luma, self.strength.chroma) or 1.0

    @property
    def _blended(self) -> Strength:
        """What of the strength is a blend."""
        factor = self._sigma_factor
        return Strength(self.strength.luma / factor, self.strength.chroma / factor)

    def frames(self, raw: RawImage) -> Callable[[RawImage], Frame]:
        """How this raw, or a form of it, becomes the model's input; its noise is that of the raw in every form."""
        model, noise = self.model, self.noise
        if model.in_channels == CFA_PLANES and not isinstance(noise, tuple):
            noise = noise_of(raw, noise)
        return lambda form: frame_of(form, model, noise=noise, sigma_factor=self._sigma_factor)

    def tile_of(self, raw: RawImage) -> int:
        """Model input pixels a side of the tiles that a raw is cut into, as memory is now."""
        lattice = self.model.lattice
        if not self._adapts:
            return fixed_tile(self.backend, self.tile) // lattice * lattice
        height, width = frame_size(raw, self.model)
        outputs = _OUTPUT_BYTES * raw.mosaic.size
        return fitting_tile(
            height,
            width,
            halo=self.model.halo,
            lattice=lattice,
            smallest=SMALLEST_TILE,
            bytes_per_pixel=self._bytes_per_pixel,
            room=min(self.memory, resident_memory() + available_memory()) - self._own_bytes - outputs,
        )

    def _network_output(self, raw: RawImage) -> Iterator[_Wide]:
        """What the network makes of a raw, at the bundle's own gain."""
        frame = self.frames(raw)(raw)
        tile = self.tile_of(raw)
        for patch in run_tiled(self.model, frame.height, frame.width, frame.window, tile=tile, run=self._run):
            if (cut := _within(patch, frame.offset, raw.height, raw.width)) is not None:
                cut = cut._replace(pixels=frame.camera_rgb(cut.pixels))
                yield _Wide(cut, cut.top, cut.left, cut.pixels)

    def _rectangles(self, raw: RawImage) -> Iterator[_Wide]:
        """The same rectangle by rectangle, with the surroundings that a blend needs, of one form of the raw or the mean
        of eight."""
        margin = 0 if self._blended.is_full else MARGIN
        side = self.model.scale * self.tile_of(raw)
        frames = self.frames(raw)
        forms = [Form(raw, form, frames) for form in (FORMS if self.ensemble else FORMS[:1])]
        for top, left in itertools.product(range(0, raw.height, side), range(0, raw.width, side)):
            core = Span(top, min(top + side, raw.height)), Span(left, min(left + side, raw.width))
            rows, columns = (
                Span(max(span.start - margin, 0), min(span.stop + margin, length))
                for span, length in zip(core, raw.mosaic.shape, strict=True)
            )
            pixels = self.rectangle(forms[0], rows, columns, side)
            for form in forms[1:]:
                pixels += self.rectangle(form, rows, columns, side)
            pixels /= len(forms)
            inner = pixels[:, core[0].start - rows.start :, core[1].start - columns.start :]
            inner = inner[:, : core[0].stop - core[0].start, : core[1].stop - core[1].start]
            yield _Wide(Patch(core[0].start, core[1].start, inner), rows.start, columns.start, pixels)

    def rectangle(self, form: Form, rows: Span, columns: Span, side: int) -> Tensor:
        """(3, h, w) of the picture in the raw's own pixels, computed on one of its forms.

        side  photosites of the largest rectangle without margin: windows of all of them have one shape
        """
        model, frame = self.model, form.frame
        lattice, scale = model.lattice, model.scale
        spans = []
        for span, before, length in zip(
            form.forwards(rows, columns), frame.offset, (frame.height, frame.width), strict=True
        ):
            start, stop = (span.start + before) // scale, -(-(span.stop + before) // scale)
            # On the lattice, a rectangle and what is around it may begin up to a lattice earlier and end as much later.
            window = -(-(side // scale + 2 * MARGIN) // lattice) * lattice + lattice + 2 * model.halo
            window = min(window, length)
            first = min(max(start // lattice * lattice - model.halo, 0), length - window)
            assert first + window >= min(stop + model.halo, length)
            spans.append((Span(first, first + window), span.start + before - scale * first))
        (window_rows, dy), (window_columns, dx) = spans
        output = self._run(frame.window(Tile(window_rows, window_columns, window_rows, window_columns))[None])[0]
        height, width = (span.stop - span.start for span in form.forwards(rows, columns))
        return form.backwards(frame.camera_rgb(output[:, dy : dy + height, dx : dx + width]))

    def _run(self, x: Tensor) -> Tensor:
        return self.opened.backend.run(x)

    def _at_strength(self, raw: RawImage, wide: _Wide) -> Patch:
        if self._blended.is_full:
            return wide.core
        (top, left), (height, width) = (wide.top, wide.left), wide.pixels.shape[1:]
        mosaic = torch.from_numpy(raw.mosaic[top : top + height, left : left + width].copy())
        cfa = shift_cfa(raw.cfa, top, left)
        black_level = torch.from_numpy(np.roll(raw.black_level, (-top, -left), (0, 1)))
        linear = normalize_levels(mosaic, black_level, float(raw.white_level))
        noisy = noisy_picture(linear, wide.pixels, cfa=cfa, as_shot_white_balance=raw.as_shot_white_balance)
        matrix = luminance_matrix(raw.as_shot_white_balance, raw.xyz_to_camera)
        mixed = blend(noisy, wide.pixels, self._blended, matrix)
        (dy, dx), (rows, columns) = (wide.core.top - top, wide.core.left - left), wide.core.pixels.shape[1:]
        return wide.core._replace(pixels=mixed[:, dy : dy + rows, dx : dx + columns])


def fixed_tile(backend: BackendName, tile: TileSize) -> int:
    """Model input pixels a side of a tile, where its size shows in the result."""
    return _FIXED_TILES[backend] if tile == "auto" else tile


# --- a raw as networks see it -----------------------------------------------------------------------------------------


class _Wide(NamedTuple):
    """A patch, and the rectangle around it that was computed with it."""

    core: Patch
    top: int
    left: int
    pixels: Tensor


FORMS = tuple((down, right, turned) for down in (False, True) for right in (False, True) for turned in (False, True))
"""Upside down, mirrored, and then transposed or not: the eight symmetries of the square, the raw itself first."""


class Form:
    """One of a raw's eight mirrored and turned forms: a raw like any other, whose CFA and black levels are read from
    its own top-left. Mirroring lines, as for any other phase, brings it to RGGB; no photosite is lost or moved."""

    def __init__(
        self, raw: RawImage, form: tuple[bool, bool, bool], frame_of_form: Callable[[RawImage], Frame]
    ) -> None:
        self._down, self._right, self._transposed = form
        self._height, self._width = raw.mosaic.shape
        mosaic = self._turned(raw.mosaic)
        tile, black_level = _tile(raw.cfa), raw.black_level
        # The tile at the top-left is what comes to lie there, by where in a tile the sides end.
        period = len(tile)
        first = np.ix_(
            [(self._height - 1 - y) % period if self._down else y for y in range(period)],
            [(self._width - 1 - x) % period if self._right else x for x in range(period)],
        )
        tile, black_level = tile[first], black_level[first]
        if self._transposed:
            tile, black_level = tile.T, black_level.T
        self.frame = frame_of_form(replace(raw, mosaic=mosaic, cfa="".join(tile.flat), black_level=black_level))

    def forwards(self, rows: Span, columns: Span) -> tuple[Span, Span]:
        """Where a rectangle of the raw lies in this form of it."""
        if self._down:
            rows = Span(self._height - rows.stop, self._height - rows.start)
        if self._right:
            columns = Span(self._width - columns.stop, self._width - columns.start)
        return (columns, rows) if self._transposed else (rows, columns)

    def backwards(self, pixels: Tensor) -> Tensor:
        """(3, h, w) of this form, as they lie in the raw."""
        if self._transposed:
            pixels = pixels.transpose(1, 2)
        flipped = [dim for dim, done in ((1, self._down), (2, self._right)) if done]
        return pixels.flip(flipped).contiguous() if flipped else pixels.clone(memory_format=torch.contiguous_format)

    def _turned(self, mosaic: np.ndarray) -> np.ndarray:
        mosaic = mosaic[:: -1 if self._down else 1, :: -1 if self._right else 1]
        return mosaic.T if self._transposed else mosaic


def _tile(cfa: str) -> np.ndarray:
    """(2, 2) or (6, 6) letters."""
    period = cfa_period(cfa)
    return np.array(list(cfa)).reshape(period, period)


def _within(patch: Patch, offset: tuple[int, int], height: int, width: int) -> Patch | None:
    """The part of a patch of the padded picture that lies in the raw's own `height` x `width`, None if nothing does."""
    (top, left), (dy, dx) = (patch.top, patch.left), offset
    rows = slice(max(dy - top, 0), max(dy + height - top, 0))
    columns = slice(max(dx - left, 0), max(dx + width - left, 0))
    pixels = patch.pixels[:, rows, columns]
    return Patch(max(top - dy, 0), max(left - dx, 0), pixels) if pixels.numel() else None


# --- brightness of an arbitrary gain ----------------------------------------------------------------------------------


def _at_gain_of(raw: RawImage, patches: Iterator[_Wide], in_memory: int) -> Iterator[_Wide]:
    """The patches of a whole picture, all scaled by one factor, which brings the picture, sampled by the raw's CFA, to
    the mean of the raw's mosaic over photosites that did not clip.

    Mosaic against mosaic: a picture's mean weighs green once, a mosaic's twice.

    in_memory  bytes of patches that wait there; more go to a temporary file
    """
    unclipped = _unclipped(raw)
    sampled = np.empty(raw.mosaic.shape, np.float32)
    with tempfile.SpooledTemporaryFile(max_size=in_memory) as waiting:
        places = []
        for wide in patches:
            core, (rows, columns) = wide.core, wide.core.pixels.shape[1:]
            cfa = shift_cfa(raw.cfa, core.top, core.left)
            sampled[core.top : core.top + rows, core.left : core.left + columns] = sample_cfa(core.pixels, cfa).numpy()
            waiting.write(np.ascontiguousarray(wide.pixels.numpy()).data)
            places.append((core.top, core.left, rows, columns, wide.top, wide.left, *wide.pixels.shape[1:]))
        # The whole mosaic at once, not patch by patch: the order of summation is the image's, so tiles change no bit.
        mean = _mean(sampled, unclipped)
        wanted = _mean(_linear(raw, into=sampled), unclipped)
        del sampled, unclipped
        if not (wanted > 0 and mean > 0):
            raise RawFileError(
                raw.path,
                f"has no brightness that this bundle's output could take: over photosites below white its mean is "
                f"{wanted:.3g} and that of the output {mean:.3g}, but both must be above 0; use a bundle of absolute "
                "gain",
            )
        waiting.seek(0)
        for top, left, rows, columns, wide_top, wide_left, height, width in places:
            samples = np.frombuffer(waiting.read(12 * height * width), np.float32).reshape(3, height, width)
            pixels = torch.from_numpy(samples * np.float32(wanted / mean))
            dy, dx = top - wide_top, left - wide_left
            core = Patch(top, left, pixels[:, dy : dy + rows, dx : dx + columns])
            yield _Wide(core, wide_top, wide_left, pixels)


def _mean(samples: np.ndarray, where: np.ndarray) -> float:
    return float(samples[where].mean(dtype=np.float64)) if where.any() else 0.0


def _linear(raw: RawImage, *, into: np.ndarray) -> np.ndarray:
    """(H, W) scene-linear mosaic of a raw, a few lines at a time."""
    black_level = torch.from_numpy(raw.black_level)
    for top in range(0, raw.height, 256):
        lines = torch.from_numpy(raw.mosaic[top : top + 256].copy())
        into[top : top + 256] = normalize_levels(lines, black_level, float(raw.white_level)).numpy()
    return into


def _unclipped(raw: RawImage) -> np.ndarray:
    """(H, W) whether each photosite is below the level at which it saturates."""
    return _below(raw.mosaic, raw.clipping_level)


def _below(counts: np.ndarray, level: np.ndarray) -> np.ndarray:
    """(h, w) whether each count is below the level of its site in the CFA tile."""
    below = np.empty(counts.shape, bool)
    for (y, x), limit in np.ndenumerate(level):
        rows, columns = slice(y, None, level.shape[0]), slice(x, None, level.shape[1])
        below[rows, columns] = counts[rows, columns] < limit
    return below


# --- highlights -------------------------------------------------------------------------------------------------------


def _with_highlights(raw: RawImage, patch: Patch) -> Patch:
    """The patch with what the sensor clipped as it came; its own pixels are written to."""
    pixels, (rows, columns) = patch.pixels, patch.pixels.shape[1:]
    left = max(patch.left - HIGHLIGHT_MARGIN, 0)
    right = min(patch.left + columns + HIGHLIGHT_MARGIN, raw.width)
    # A few lines at a time: in between, each pixel takes some hundred bytes.
    for first in range(0, rows, _HIGHLIGHT_ROWS):
        last = min(first + _HIGHLIGHT_ROWS, rows)
        top = max(patch.top + first - HIGHLIGHT_MARGIN, 0)
        bottom = min(patch.top + last + HIGHLIGHT_MARGIN, raw.height)
        counts = raw.mosaic[top:bottom, left:right]
        clipped = ~_below(counts, np.roll(raw.clipping_level, (-top, -left), (0, 1)))
        if not clipped.any():
            continue
        black_level = torch.from_numpy(np.roll(raw.black_level, (-top, -left), (0, 1)))
        linear = normalize_levels(torch.from_numpy(counts.copy()), black_level, float(raw.white_level))
        dy, dx = patch.top + first - top, patch.left - left
        wide = torch.zeros(3, *counts.shape)
        inner = (slice(None), slice(dy, dy + last - first), slice(dx, dx + columns))
        wide[inner] = pixels[:, first:last]
        kept = keep_clipped(wide, linear, torch.from_numpy(clipped), shift_cfa(raw.cfa, top, left))
        pixels[:, first:last] = kept[inner]
    return patch
