"""A made-up RawNIND: scenes of DNGs whose shifts, exposures, movers, blown highlights and broken files are known.

Photographs that scikit-image ships are seen by cameras with their own colour matrix, levels and CFA phase, and by their
sensors' photon and read noise. What was planted stands in `planted.json`, in the folder that was asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import conv2d, interpolate, pad

from library.datasets.samples import sample_scenes
from library.datasets.store import Scene
from library.errors import DataError
from library.files.atomic import whole_folder
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.ops.cfa import XTRANS_PHASES, cfa_period, rggb_offset, sample_cfa
from library.ops.color import D65_WHITE_XYZ, lin_srgb_to_camera_rgb
from library.ops.noise import add_poisson_gaussian

PLANTED = "planted.json"
Flaw = Literal["truncated", "empty", "duplicate", "overexposed", "underexposed"]

_SMALLEST_SIDE = 192
_PEAK = 0.6
"""Of a scene at exposure 1: below white at every exposure that is drawn, so that only what is planted saturates."""
_EXPOSURES = (0.7, 1.4)
_STRIP = 256
"""Lines."""
_LADDERS = ((500, 4000, 32000), (1600, 12800, 204800), (800, 6400, 64000))
_NUM_GT = (1, 2, 1, 3)
_PREFIXES = {4: "TEST_", 7: "UNK_", 11: "UNK_TEST_"}
"""Of one scene in twelve each; which scenes RawNIND reserves, their names say."""
_FLAWS: dict[int, Flaw] = {1: "truncated", 3: "empty", 5: "duplicate", 8: "overexposed", 10: "underexposed"}
_ODD_LABELS = {2: "ISOHi 3200", 6: "ISOUnknown"}
"""What RawNIND writes where the camera did not record an ISO as a number."""


@dataclass(frozen=True, kw_only=True)
class _Camera:
    """xyz_to_camera  x 10^4, as LibRaw has it
    black_level    DN, by CFA tile position
    electron       the value of one electron at ISO 100, white at 1
    read_noise     electrons
    raised_black   (ISO, factor): from that ISO up the black level is so many times higher
    """

    make: str
    model: str
    cfa: str
    black_level: tuple[int, ...]
    white_level: int
    xyz_to_camera: tuple[int, ...]
    electron: float
    read_noise: float
    gt_iso: int
    raised_black: tuple[tuple[int, int], ...] = ()

    def black_at(self, iso: int) -> np.ndarray:
        """(2, 2) or (6, 6) DN, by CFA tile position."""
        factor = max((factor for least, factor in self.raised_black if iso >= least), default=1)
        side = cfa_period(self.cfa)
        return np.array(self.black_level, np.float32).reshape(side, side) * factor

    @property
    def sensor(self) -> str:
        return "X-Trans" if self.cfa in XTRANS_PHASES else "Bayer"


# One of each Bayer phase. On a full-frame sensor an electron is worth 2 to 3 parts in a million of white at ISO 100
# (calibrations of Wei et al. 2020, "A Physics-based Noise Formation Model for Extreme Low-light Raw Denoising"), and
# more on a smaller one, whose photosites hold fewer.
_CAMERAS = (
    _Camera(
        make="SONY",
        model="ILCE-7C",
        cfa="RGGB",
        black_level=(512, 512, 512, 512),
        white_level=16383,
        xyz_to_camera=(7374, -2389, -551, -5435, 13162, 2519, -1006, 1795, 6552),
        electron=2.0e-6,
        read_noise=2.0,
        gt_iso=50,
    ),
    _Camera(
        make="Canon",
        model="Canon EOS 7D",
        cfa="GBRG",
        black_level=(2049, 2048, 2047, 2050),
        white_level=13600,
        xyz_to_camera=(6844, -996, -856, -3876, 11761, 2396, -593, 1772, 6198),
        electron=4.5e-6,
        read_noise=4.0,
        gt_iso=100,
    ),
    _Camera(
        make="SAMSUNG",
        model="NX1",
        cfa="GRBG",
        black_level=(128, 128, 128, 128),
        white_level=16100,
        xyz_to_camera=(10686, -4042, -1052, -3595, 13238, 276, -464, 1259, 5931),
        electron=4.0e-6,
        read_noise=2.5,
        gt_iso=100,
        raised_black=((8000, 4), (51200, 8)),
    ),
    _Camera(
        make="PENTAX",
        model="PENTAX K-5",
        cfa="BGGR",
        black_level=(510, 512, 513, 512),
        white_level=16383,
        xyz_to_camera=(8713, -2833, -743, -4342, 11900, 2772, -722, 1543, 6247),
        electron=3.5e-6,
        read_noise=3.0,
        gt_iso=80,
    ),
)
_XTRANS_CAMERA = _Camera(
    make="FUJIFILM",
    model="X-E2",
    cfa="RBGBRGGGRGGBGGBGGRBRGRBGGGBGGRGGRGGB",
    black_level=(1024,) * 36,
    white_level=16383,
    xyz_to_camera=(8458, -2451, -855, -4597, 12447, 2407, -1475, 2482, 6526),
    electron=4.0e-6,
    read_noise=2.5,
    gt_iso=200,
)


@dataclass(frozen=True)
class Disc:
    """Where something was planted: centre and radius, full-resolution pixels of a file's mosaic; a Bayer one is cropped
    to RGGB before."""

    y: float
    x: float
    radius: float

    def moved(self, dy: int, dx: int) -> Disc:
        """The same disc in a picture that has what is here `dy` rows further down and `dx` columns further right."""
        return Disc(self.y + dy, self.x + dx, self.radius)

    def covers(self, height: int, width: int) -> np.ndarray:
        """bool (height, width): its pixels."""
        rows, columns = np.ogrid[:height, :width]
        return (rows - self.y) ** 2 + (columns - self.x) ** 2 <= self.radius**2


@dataclass(frozen=True)
class PlantedFile:
    """One file as it was made.

    path         from the folder that was asked for
    gt           whether it is a clean image
    iso          None where the file does not say
    shift        (dy, dx) of the camera against the scene's first clean image, full-resolution pixels
    exposure     times the scene's light
    a, b         noise variance a x + b at x, black at 0 and white at 1
    mover        where the thing stands that is elsewhere in every image of the scene
    overexposed  what is above white
    flaw         how it is broken; a duplicate's bytes are those of `same_as`
    """

    path: str
    gt: bool
    iso: float | None
    shift: tuple[int, int]
    exposure: float
    a: float
    b: float
    sha1: str
    sha256: str
    mover: Disc | None = None
    overexposed: tuple[Disc, ...] = ()
    flaw: Flaw | None = None
    same_as: str | None = None


@dataclass(frozen=True)
class PlantedScene:
    """The files of one scene, all of one camera: clean ones first, a broken one last."""

    name: str
    sensor: str
    make: str
    model: str
    cfa: str
    files: tuple[PlantedFile, ...]

    @property
    def gt(self) -> tuple[PlantedFile, ...]:
        return tuple(file for file in self.files if file.gt)

    @property
    def noisy(self) -> tuple[PlantedFile, ...]:
        return tuple(file for file in self.files if not file.gt)


@dataclass(frozen=True)
class Planted:
    """All that was made."""

    folder: Path
    seed: int
    height: int
    width: int
    flat: bool
    scenes: tuple[PlantedScene, ...]

    @property
    def files(self) -> tuple[PlantedFile, ...]:
        return tuple(file for scene in self.scenes for file in scene.files)

    def __str__(self) -> str:
        flaws = sum(file.flaw is not None for file in self.files)
        return f"{self.folder}: {len(self.scenes)} scenes, {len(self.files)} files, {flaws} of them broken on purpose"


def true_shift(gt: PlantedFile, f: PlantedFile) -> tuple[int, int]:
    """(dy, dx) full-resolution pixels: row y of f shows what row y + dy of gt shows, so that with dy > 0 the first dy
    rows of gt have no partner, nor have the last dy of f."""
    return f.shift[0] - gt.shift[0], f.shift[1] - gt.shift[1]


def true_gain(gt: PlantedFile, f: PlantedFile) -> float:
    """Factor that brings f to the exposure of gt."""
    return gt.exposure / f.exposure


def true_movers(gt: PlantedFile, f: PlantedFile) -> tuple[Disc, ...]:
    """Where gt and f show different things, in pixels of gt: the mover's place in either."""
    here = () if gt.mover is None else (gt.mover,)
    return here if f.mover is None else (*here, f.mover.moved(*true_shift(gt, f)))


def generate(
    folder: str | Path,
    *,
    scenes: int = 12,
    width: int = 768,
    height: int = 512,
    seed: int = 0,
    flat: bool = False,
    max_shift: int = 40,
    xtrans: int = 0,
) -> Planted:
    """Make the files and `planted.json`, all of them or none. The same arguments give the same bytes.

    folder     must not hold anything yet
    scenes     of Bayer sensors, any number; twelve hold every camera, prefix, odd ISO label and flaw
    width      and `height`: even, at least 192
    flat       all files in one folder under their download names, rather than as the tree that `organize` makes of them
    max_shift  pixels between two images of a scene, either way; at most an eighth of a side
    xtrans     scenes of an X-Trans sensor that come after these
    raises     DataError for sizes that cannot be, or a folder that holds something
    """
    folder = Path(folder)
    if min(width, height) < _SMALLEST_SIDE or width % 2 or height % 2 or min(scenes, xtrans) < 0 or scenes + xtrans < 1:
        raise DataError(
            f"{scenes + xtrans} scenes of {width} x {height} cannot be made: "
            f"give at least one, and even sides from {_SMALLEST_SIDE} pixels up"
        )
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds something already: give another folder, or empty it")
    max_shift = min(max_shift, min(width, height) // 8)
    # Stars on black are a scene that no camera exposes well.
    exposable = (scene for scene in _photographs() if scene.name != "hubble_deep_field")
    pictures = list(itertools.islice(exposable, scenes + xtrans))
    with whole_folder(folder, last=PLANTED) as temporary:
        made = []
        for number in range(scenes + xtrans):
            picture = pictures[number % len(pictures)]
            camera = _CAMERAS[number % len(_CAMERAS)] if number < scenes else _XTRANS_CAMERA
            name = f"{_PREFIXES.get(number % 12, '')}{picture.name}-{number:02d}"
            stage = _Stage(name, number, camera, seed, max_shift)
            made.append(stage.shoot(picture.rgb, height, width, temporary, flat))
        planted = Planted(folder, seed, height, width, flat, tuple(made))
        facts = dataclasses.asdict(planted)
        del facts["folder"]
        (temporary / PLANTED).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return planted


def read_planted(folder: str | Path) -> Planted:
    """What `generate` planted in a folder.

    raises  DataError when the folder holds no `planted.json`
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / PLANTED).read_text(encoding="utf-8"))
        scenes = tuple(
            PlantedScene(**{**scene, "files": tuple(_file(file) for file in scene["files"])})
            for scene in facts["scenes"]
        )
        return Planted(**{**facts, "folder": folder, "scenes": scenes})
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DataError(
            f"{folder}: holds no {PLANTED} that can be read ({error}); make it by `stillgrain data generate`"
        ) from None


def _file(facts: dict[str, Any]) -> PlantedFile:
    mover = facts["mover"] and Disc(**facts["mover"])
    overexposed = tuple(Disc(**disc) for disc in facts["overexposed"])
    return PlantedFile(**{**facts, "shift": tuple(facts["shift"]), "mover": mover, "overexposed": overexposed})


def _photographs() -> Iterator[Scene]:
    return itertools.takewhile(lambda scene: not scene.name.startswith("dead_leaves"), sample_scenes())


@dataclass(frozen=True)
class _Shot:
    """What one exposure is to be."""

    gt: bool
    iso: int
    label: str
    shift: tuple[int, int]
    exposure: float
    mover: tuple[float, float] | None
    flaw: Flaw | None = None

    @property
    def recorded_iso(self) -> float | None:
        return float(self.iso) if self.label.removeprefix("ISO").isdigit() else None


class _Stage:
    """One scene and its camera. Coordinates are those of the stage, which is `margin` wider than a frame all round."""

    def __init__(self, name: str, number: int, camera: _Camera, seed: int, margin: int) -> None:
        self.name = name
        self.number = number
        self.margin = margin
        self.camera = camera
        self.rng = np.random.default_rng([seed, number])

    def shoot(self, picture: np.ndarray, height: int, width: int, folder: Path, flat: bool) -> PlantedScene:
        light = self._light(picture, height + 2 * self.margin, width + 2 * self.margin)
        self.radius = min(height, width) / 16
        bright = self._places(light, height, width, 1, []) if self.number % 3 == 1 else []
        shots = self._plan(light, height, width, bright)
        for place in bright:
            # Above white at the shortest exposure that is drawn, and so far that noise does not bring it back.
            light[:, *_disc(place, self.radius)] = 2 / _EXPOSURES[0]
        files: list[PlantedFile] = []
        for shot in shots:
            files.append(self._write(shot, light, height, width, bright, folder, flat, files))
        camera = self.camera
        return PlantedScene(self.name, camera.sensor, camera.make, camera.model, camera.cfa, tuple(files))

    def _light(self, picture: np.ndarray, height: int, width: int) -> torch.Tensor:
        """(3, height, width) camera RGB from 0 to `_PEAK`, of a part of the picture, enlarged where it is small."""
        lin_srgb = torch.from_numpy(picture).permute(2, 0, 1).float()
        matrix, _ = _color(self.camera)
        rgb = lin_srgb_to_camera_rgb(lin_srgb, xyz_to_camera=matrix).clamp_(min=0)
        scale = max(height / rgb.shape[1], width / rgb.shape[2])
        if scale > 1:
            size = [math.ceil(side * scale) for side in rgb.shape[1:]]
            rgb = interpolate(rgb[None], size=size, mode="bilinear", align_corners=False)[0]
        rgb = self._part(rgb, height, width)
        if self.rng.random() < 0.5:
            rgb = rgb.flip(2)
        if scale > 1:
            # An enlarged picture is smooth, and a real one is not.
            grain = torch.from_numpy(self.rng.standard_normal((1, 1, height // 2, width // 2), dtype=np.float32))
            rgb = rgb * interpolate(grain, size=(height, width), mode="bilinear")[0].mul_(0.05).add_(1)
        rgb = torch.stack([_blur(plane) for plane in rgb])
        step = max(1, min(height, width) // 256)
        brightest = np.quantile(rgb[:, ::step, ::step].amax(0).numpy(), 0.995)
        return rgb.mul_(_PEAK / float(brightest)).clamp_(0, _PEAK)

    def _part(self, rgb: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(3, height, width): of a few parts at random the one with most to see, since a piece of bare sky has no shift
        that anyone could find."""
        highest = [have - want + 1 for have, want in zip(rgb.shape[1:], (height, width), strict=True)]
        parts = [
            rgb[:, top : top + height, left : left + width] for top, left in self.rng.integers(highest, size=(8, 2))
        ]
        step = max(1, min(height, width) // 256)
        looks = [part[:, ::step, ::step].sqrt() for part in parts]
        detail = [sum(float(look.diff(dim=dim).abs().mean()) for dim in (1, 2)) for look in looks]
        return parts[int(np.argmax(detail))]

    def _plan(self, light: torch.Tensor, height: int, width: int, bright: list[tuple[float, float]]) -> list[_Shot]:
        number, camera, rng = self.number, self.camera, self.rng
        ladder = _LADDERS[number % len(_LADDERS)]
        isos = [camera.gt_iso] * _NUM_GT[number % len(_NUM_GT)] + list(ladder)
        num_gt = len(isos) - len(ladder)
        movers: list[tuple[float, float] | None] = [None] * len(isos)
        if number % 2 == 0:
            movers = list(self._places(light, height, width, len(isos), bright))
        shots = []
        for index, (iso, mover) in enumerate(zip(isos, movers, strict=True)):
            gt = index < num_gt
            label = f"ISO{min(iso, 65535)}"
            if index == num_gt + 1:
                label = _ODD_LABELS.get(number % 12, label)
            # Most tripods stand still.
            still = index == 0 or (index == num_gt and number % 4 == 2)
            shift = (0, 0) if still else self._shift(index)
            shots.append(_Shot(gt, iso, label, shift, round(float(rng.uniform(*_EXPOSURES)), 4), mover))
        flaw = _FLAWS.get(number % 12)
        if flaw is not None:
            usual = dataclasses.replace(shots[num_gt], flaw=flaw, iso=3200, label="ISO3200", mover=None)
            exposure = usual.exposure
            if flaw == "overexposed":
                exposure = 2 / max(float(np.quantile(light.amax(0).numpy(), 0.02)), 1e-4)
            elif flaw == "underexposed":
                usual, exposure = dataclasses.replace(usual, iso=camera.gt_iso, label=f"ISO{camera.gt_iso}"), 2e-4
            shots.append(dataclasses.replace(usual, exposure=round(exposure, 6)))
        return shots

    def _shift(self, index: int) -> tuple[int, int]:
        """Over the images of some scenes, both signs and parities of either axis."""
        parity = index + self.number
        dy, dx = (int(d) for d in self.rng.integers(-self.margin + 1, self.margin, 2))
        return dy - (dy - parity) % 2, dx - (dx - parity // 2) % 2

    def _places(
        self, light: torch.Tensor, height: int, width: int, count: int, taken: list[tuple[float, float]]
    ) -> list[tuple[float, float]]:
        """Centres of discs that do not touch one another and lie in every frame, in dark surroundings, where what is
        bright is seen."""
        border = 2 * self.margin + self.radius + 4
        lows, highs = (border, border), (height + 2 * self.margin - border, width + 2 * self.margin - border)
        candidates = self.rng.uniform(lows, highs, (256, 2)).round(1).tolist()
        step = max(1, int(self.radius) // 8)
        luma, radius = light[:, ::step, ::step].mean(0), self.radius / step
        candidates.sort(key=lambda place: float(luma[_disc((place[0] / step, place[1] / step), radius)].mean()))
        chosen: list[tuple[float, float]] = []
        for y, x in candidates:
            clear = 2 * self.radius + 4
            if all((y - v) ** 2 + (x - u) ** 2 > clear**2 for v, u in (*taken, *chosen)):
                chosen.append((y, x))
            if len(chosen) == count:
                break
        assert len(chosen) == count, f"{self.name}: no room for {count} discs"
        return chosen

    def _write(
        self,
        shot: _Shot,
        light: torch.Tensor,
        height: int,
        width: int,
        bright: list[tuple[float, float]],
        folder: Path,
        flat: bool,
        before: list[PlantedFile],
    ) -> PlantedFile:
        camera = self.camera
        a = camera.electron * shot.iso / 100
        # Read noise in electrons is amplified with the signal; the converter's, of about one code, is not.
        b = (camera.read_noise * a) ** 2 + 1 / (camera.white_level - float(camera.black_at(shot.iso)[0, 0])) ** 2
        original = next((file for file in before if not file.gt), None) if shot.flaw == "duplicate" else None
        if original is not None:
            data = (folder / original.path).read_bytes()
        elif shot.flaw == "empty":
            data = b""
        else:
            data = self._expose(shot, light, height, width, a, b)
            if shot.flaw == "truncated":
                data = data[: len(data) * 3 // 5]
        sha1 = hashlib.sha1(data).hexdigest()
        name = f"{camera.sensor}_{self.name}_{'GT_' if shot.gt else ''}{shot.label}_sha1={sha1}.dng"
        path = name if flat else f"{camera.sensor}/{self.name}/{'gt/' if shot.gt else ''}{name}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        if original is not None:
            return dataclasses.replace(original, path=path, flaw=shot.flaw, same_as=original.path)
        offsets = rggb_offset(camera.cfa) if camera.sensor == "Bayer" else (0, 0)
        top, left = (self.margin + moved + offset for moved, offset in zip(shot.shift, offsets, strict=True))
        return PlantedFile(
            path=path,
            gt=shot.gt,
            iso=shot.recorded_iso,
            shift=shot.shift,
            exposure=shot.exposure,
            a=a,
            b=b,
            sha1=sha1,
            sha256=hashlib.sha256(data).hexdigest(),
            mover=None if shot.mover is None else self._disc_from(shot.mover, top, left),
            overexposed=tuple(self._disc_from(place, top, left) for place in bright),
            flaw=shot.flaw,
        )

    def _disc_from(self, place: tuple[float, float], top: int, left: int) -> Disc:
        return Disc(round(place[0] - top, 1), round(place[1] - left, 1), self.radius)

    def _expose(self, shot: _Shot, light: torch.Tensor, height: int, width: int, a: float, b: float) -> bytes:
        """The bytes of one exposure's DNG."""
        camera = self.camera
        top, left = self.margin + shot.shift[0], self.margin + shot.shift[1]
        frame = light[:, top : top + height, left : left + width]
        if shot.mover is None:
            clean = sample_cfa(frame, camera.cfa)
        else:
            where = _disc(shot.mover, self.radius)
            hidden = light[:, *where]
            light[:, *where] = 0.9 * _PEAK
            clean = sample_cfa(frame, camera.cfa)
            light[:, *where] = hidden
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**63)))
        black = camera.black_at(shot.iso)
        codes = np.empty((height, width), np.uint16)
        # In strips, since noise needs many times the memory of what it is added to.
        for start in range(0, height, _STRIP):
            strip = clean[start : start + _STRIP].mul_(shot.exposure).clamp_(max=4)
            noisy = add_poisson_gaussian(strip, a, b, generator=generator).numpy()
            lines = (np.arange(start, start + len(noisy)), np.arange(width))
            site = black[np.ix_(*(line % len(black) for line in lines))]
            values = noisy * (camera.white_level - site) + site
            codes[start : start + _STRIP] = np.clip(np.round(values), 0, camera.white_level)
        matrix, white_balance = _color(camera)
        metadata = ImageMetadata(
            make=camera.make,
            model=camera.model,
            iso=shot.recorded_iso,
            exposure_time=shot.exposure * 100 / shot.iso,
            f_number=8.0,
            focal_length=50.0,
            timestamp=f"2024-05-{1 + self.number % 28:02d}T12:00:00",
            xyz_to_camera=matrix,
            as_shot_white_balance=white_balance,
        )
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, "shot.dng")
            write_cfa_dng(
                path, codes, cfa=camera.cfa, black_level=black, white_level=camera.white_level, metadata=metadata
            )
            return path.read_bytes()


def _blur(plane: torch.Tensor) -> torch.Tensor:
    """What a lens does, (H, W) of the same size: without, a mosaic has detail that no demosaicing tells from colour,
    and a shift by one pixel looks unlike the same scene."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = pad(plane[None, None], (2, 2, 2, 2), mode="reflect")
    return conv2d(conv2d(padded, kernel.view(1, 1, 5, 1)), kernel.view(1, 1, 1, 5))[0, 0]


def _disc(place: tuple[float, float], radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column numbers of a disc's pixels."""
    y, x = place
    rows, columns = np.mgrid[int(y - radius) : int(y + radius) + 2, int(x - radius) : int(x + radius) + 2]
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return torch.from_numpy(rows[inside]), torch.from_numpy(columns[inside])


def _color(camera: _Camera) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) XYZ -> camera, and the (3,) gains that make D65 neutral."""
    matrix = np.array(camera.xyz_to_camera).reshape(3, 3) / 10000
    white = matrix @ D65_WHITE_XYZ.numpy()
    return matrix, white[1] / white
