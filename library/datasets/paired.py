"""Pairs of clean and noisy raws of one scene, from a tree that `workload: prepare` has prepared.

A sample is: a pair, drawn by its weight; a crop of it of which enough counts; mirrored or transposed so that its mosaic
still reads RGGB; the two images brought to one brightness. Which, is a function of seed, step and slot, as for every
data set; nothing is ever removed, and nothing ends early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from upath import UPath

from library.config import Component, Frozen, Location
from library.datasets import order
from library.datasets.batch import Batch
from library.datasets.sensors import AnySensor
from library.errors import DataError
from library.files.places import place
from library.ops.cfa import pack_cfa, unpack_cfa
from library.ops.color import XYZ_TO_LIN_REC2020, camera_rgb_to_lin_rec2020
from library.ops.noise import add_poisson_gaussian
from library.pairs.development import draw_development
from library.pairs.index import INDEX, Pair
from library.pairs.split import Part, Split
from library.pairs.store import PairStore

_CROPS_TRIED = 10
_PAIRS_TRIED = 16
Weight = Annotated[float, Field(ge=0)]


class Mix(Frozen):
    """Shares of what is trained on, in one global order."""

    clean_noisy: Weight = 1.0
    """Pairs of a clean and a noisy image."""
    clean_clean: Weight = 0.0
    """Clean images alone, or paired with other clean ones of their scene."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.clean_noisy + self.clean_clean == 0:
            raise ValueError("clean_noisy and clean_clean are both 0, which leaves nothing to train on")
        return self


class Quality(Frozen):
    """Which pairs are good enough to train and validate on."""

    aligned: bool = True
    """Only pairs whose shift is certain."""
    max_alignment_loss: float | None = Field(default=None, gt=0)
    """Mean absolute difference after alignment; RawNIND's recipes have 0.035. Noise and brightness raise it too."""
    min_valid: float = Field(default=0.8, ge=0, le=1)
    """Share of a pair's pixels that count."""
    min_ms_ssim: float | None = Field(default=None, ge=-1, le=1)
    """Of the noisy image against the clean one: what is noisier is left out."""
    max_ms_ssim: float | None = Field(default=None, ge=-1, le=1)
    """What is less noisy is left out."""
    min_valid_in_crop: float = Field(default=0.5, ge=0, le=1)
    """Share of a training crop's pixels that must count; otherwise another crop is taken."""

    def accepts(self, pair: Pair) -> bool:
        score = pair.rgb_msssim
        return (
            (pair.alignment_ok or not self.aligned)
            and (self.max_alignment_loss is None or pair.alignment_loss <= self.max_alignment_loss)
            and pair.mask_mean >= self.min_valid
            and (self.min_ms_ssim is None or (score is not None and score >= self.min_ms_ssim))
            and (self.max_ms_ssim is None or (score is not None and score <= self.max_ms_ssim))
        )


class Weights(Frozen):
    """How often a pair is drawn beside others; what nothing names has weight 1, and factors multiply."""

    scenes: dict[str, Weight] = Field(default_factory=dict)
    """By patterns of scene names: {"MuseeL-*": 2}."""
    cameras: dict[str, Weight] = Field(default_factory=dict)
    """By patterns of make and model: {"Canon*": 0.5}."""
    isos: dict[str, Weight] = Field(default_factory=dict)
    """By ranges of the noisy image's ISO, the end left out: {"0-3200": 0.5, "3200-": 2}."""
    per_scene: bool = False
    """Give each scene of a stream the same weight, however many pairs it has."""

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for text in self.isos:
            _iso_range(text)
        return self

    def of(self, pair: Pair) -> float:
        weight = 1.0
        for patterns, name in ((self.scenes, pair.scene), (self.cameras, pair.camera)):
            for pattern, factor in patterns.items():
                weight *= factor if fnmatchcase(name, pattern) else 1.0
        for text, factor in self.isos.items():
            low, high = _iso_range(text)
            weight *= factor if pair.f_iso is not None and low <= pair.f_iso < high else 1.0
        return weight


class Config(Component):
    kind: Literal["paired"] = "paired"
    prepared: Location
    """The folder that `workload: prepare` made."""
    input: Literal["bayer", "linear", "developed"] = "bayer"
    """What a model sees. bayer: packed R, G1, G2, B. linear: the demosaiced image in lin_rec2020, X-Trans too.
    developed: that, and its truth likewise, after one random development for both (RawNIND's proc2proc). The noise that
    a batch names is that of photosites."""
    pairing: Literal["x_y", "x_x", "y_y"] = "x_y"
    """Truth and input: clean and noisy; clean and clean, for codecs that shall not denoise; noisy and noisy."""
    gain: Literal["target", "input", "never"] = "target"
    """Which image of a pair is brought to the other's brightness, by the gain measured over whole images. target: the
    truth is, so that a model sees raws as they were recorded. input: the noisy one, as with RawNIND's `match_gain:
    input`. never: none, for `gain: match_target` of the training."""
    mix: Mix = Mix()
    clean_noise: AnySensor | None = None
    """Noise that is simulated on clean inputs of the clean_clean stream; left out, they stay as they are."""
    demosaic: Literal["bilinear", "malvar", "ahd", "menon"] = "menon"
    """Of truths that are not stored, and of inputs that are pictures."""
    split: Split = Split()
    """Scenes to train, to validate and to test on."""
    quality: Quality = Quality()
    weights: Weights = Weights()
    crop: int = Field(default=256, ge=16, multiple_of=2)
    """Full-resolution pixels a side of a training crop."""
    validation_crop: int = Field(default=512, gt=160, multiple_of=2)
    """Full-resolution pixels a side of the centre crop that validation sees of each pair; MS-SSIM needs more than 160.
    """
    validation_pairs: int = Field(default=64, gt=0)
    """At most so many pairs are validated on, spread over the scenes."""
    flips: bool = False
    """Mirror and transpose at random; the mosaic is brought back to RGGB."""

    @property
    def planes(self) -> int:
        """Channels of a noisy sample."""
        return 4 if self.input == "bayer" else 3

    @model_validator(mode="after")
    def _noise_has_a_stream(self) -> Self:
        if self.clean_noise is not None and (self.input != "bayer" or self.mix.clean_clean == 0):
            raise ValueError("clean_noise is for clean mosaics: set input to bayer and mix.clean_clean above 0")
        return self

    def prepare(self, folder: str | Path | UPath) -> UPath:
        """The prepared folder's own path: another workload made it. Raises `DataError` where it is not prepared."""
        prepared = place(self.prepared)
        if not (prepared / INDEX).exists():
            raise DataError(
                f"dataset.prepared: {prepared} holds no {INDEX}; make it with "
                "`stillgrain run workloads/configs/prepare_rawnind.yaml`"
            )
        return prepared

    def open(self, store: str | Path | UPath, seed: int) -> Paired:
        """The data set over a prepared folder; one in an object store is copied to this machine first."""
        return Paired(self, PairStore(store, demosaic=self.demosaic), seed)


@dataclass(frozen=True)
class _Sample:
    """One sample, before it is stacked: as the fields of `Batch`, without N."""

    noisy: Tensor
    clean: Tensor
    mask: Tensor
    xyz_to_camera: Tensor
    noise: tuple[float, float]


class Paired:
    """Training batches and validation items as pure functions of the seed, the step and the slot."""

    def __init__(self, config: Config, store: PairStore, seed: int) -> None:
        """Raises `DataError` where the split, the quality or the sizes leave nothing."""
        self.config = config
        self.store = store
        self.seed = seed
        parts = config.split.parts(pair.scene for pair in store.pairs)
        self._usable = [
            index for index, pair in enumerate(store.pairs) if config.quality.accepts(pair) and self._shows(pair)
        ]
        trained = self._of_part(parts, "train", config.crop + (2 if config.flips else 0))
        weights = self._weights_of([store.pairs[index] for index in trained])
        self.training_pairs = [index for index, weight in zip(trained, weights, strict=True) if weight > 0]
        self.weights = weights[weights > 0]
        """Of the training pairs: how often each is drawn."""
        self.validation_scenes = self._validation_pairs(parts)
        """Indices of the pairs that are validated on."""

    @property
    def digest(self) -> str:
        """Names the pairs this data set draws from."""
        return self.store.digest

    def batch(self, step: int, slots: Sequence[int], *, batch_size: int) -> Batch:
        """The samples of some slots of step `step`'s global batch."""
        return _stacked([self._training_sample(step, slot, batch_size) for slot in slots])

    def validation_item(self, index: int) -> tuple[str, Batch]:
        """Name and one-image batch of validation pair `index`: the centre crop, no flips."""
        chosen = self.validation_scenes[index]
        pair = self.store.pairs[chosen]
        sample = self._sample(chosen, self._centre(chosen), order.validation_random(self.seed, index))
        return f"{pair.scene}/{Path(pair.f_path).stem}", _stacked([sample])

    # --- which -------------------------------------------------------------------------------------------------------

    def _shows(self, pair: Pair) -> bool:
        """Whether the input that is asked for can be made of a pair."""
        return pair.xyz_to_camera is not None and (pair.sensor == "Bayer" or self.config.input != "bayer")

    def _of_part(self, parts: dict[str, Part], part: Part, side: int) -> list[int]:
        indices = [i for i in self._usable if parts[self.store.pairs[i].scene] == part]
        large = [i for i in indices if min(self.store.size(i)) >= side]
        if not large:
            raise DataError(
                f"{self.store.folder}: of {len(self.store.pairs)} pairs none is left for {part}: {len(indices)} are of "
                f"its scenes, good enough for dataset.quality and of known colours, and of these "
                f"0 have {side} px a side; see `stillgrain data summary {self.store.folder}`"
            )
        return large

    def _validation_pairs(self, parts: dict[str, Part]) -> list[int]:
        """Noisy pairs, one of each scene before any second one."""
        found = self._of_part(parts, "validation", self.config.validation_crop)
        noisy = [i for i in found if not self.store.pairs[i].f_is_clean] or found
        rank: dict[str, int] = {}
        ranked = []
        for index in noisy:
            scene = self.store.pairs[index].scene
            ranked.append((rank.setdefault(scene, 0), index))
            rank[scene] += 1
        chosen: list[int] = []
        for _, index in sorted(ranked):
            if len(chosen) < self.config.validation_pairs and self._counts_at_centre(index):
                chosen.append(index)
        if not chosen:
            raise DataError(
                f"{self.store.folder}: in the centre {self.config.validation_crop} px of no pair that validates enough "
                "pixels count: lower dataset.validation_crop, or choose other scenes by dataset.split.validation"
            )
        return sorted(chosen)

    def _centre(self, index: int) -> tuple[int, int, int, int]:
        crop = self.config.validation_crop
        height, width = self.store.size(index)
        return (height - crop) // 4 * 2, (width - crop) // 4 * 2, crop, crop

    def _counts_at_centre(self, index: int) -> bool:
        valid = float(self.store.mask(index, *self._centre(index)).mean())
        return valid > 0 and valid >= self.config.quality.min_valid_in_crop

    def _weights_of(self, pairs: Sequence[Pair]) -> np.ndarray:
        """By what the config gives each, and its stream's share."""
        weights = np.array([self.config.weights.of(pair) for pair in pairs])
        if self.config.weights.per_scene:
            sums: dict[tuple[str, bool], float] = {}
            for pair, weight in zip(pairs, weights, strict=True):
                key = (pair.scene, pair.f_is_clean)
                sums[key] = sums.get(key, 0.0) + weight
            weights = weights / np.array([max(sums[pair.scene, pair.f_is_clean], 1e-300) for pair in pairs])
        is_clean = np.array([pair.f_is_clean for pair in pairs])
        mix = self.config.mix
        for kind, stream, share in (("noisy", ~is_clean, mix.clean_noisy), ("clean", is_clean, mix.clean_clean)):
            total = weights[stream].sum()
            if share > 0 and total == 0:
                raise DataError(
                    f"{self.store.folder}: dataset.mix asks for {kind} images, and there are none of weight above 0: "
                    "change dataset.mix, dataset.quality or dataset.weights"
                )
            weights[stream] *= share / total if total else 0.0
        return weights

    def _training_sample(self, step: int, slot: int, batch_size: int) -> _Sample:
        rng = order.training_random(self.seed, step, slot)
        drawn = order.weighted_at(self.seed, step, slot, batch_size=batch_size, weights=self.weights)
        side = self.config.crop + (2 if self.config.flips else 0)
        for _ in range(_PAIRS_TRIED):
            chosen = self.training_pairs[drawn]
            corner = self._corner_of_crop(chosen, side, rng)
            if corner is not None:
                return self._sample(chosen, (*corner, side, side), rng, train=True)
            drawn = int(rng.choice(len(self.weights), p=self.weights / self.weights.sum()))
        raise DataError(
            f"{self.store.folder}: of no crop of {side} px of {_PAIRS_TRIED} pairs enough counts: lower "
            "dataset.quality.min_valid_in_crop or dataset.crop, or raise dataset.quality.min_valid"
        )

    def _corner_of_crop(self, index: int, side: int, rng: np.random.Generator) -> tuple[int, int] | None:
        """Where a crop lies of which enough counts; None where none was found."""
        height, width = self.store.size(index)
        for _ in range(_CROPS_TRIED):
            top, left = (int(rng.integers((length - side) // 2 + 1)) * 2 for length in (height, width))
            if self.config.pairing != "x_y":
                return top, left  # input and truth are one image, and all of it counts
            valid = float(self.store.mask(index, top, left, side, side).mean())
            if valid >= self.config.quality.min_valid_in_crop and valid > 0:
                return top, left
        return None

    # --- what --------------------------------------------------------------------------------------------------------

    def _sample(
        self, index: int, box: tuple[int, int, int, int], rng: np.random.Generator, *, train: bool = False
    ) -> _Sample:
        """A crop of a pair as the config wants it."""
        pair, config = self.store.pairs[index], self.config
        crop = self.store.crop(index, *box)
        noisy, clean, mask = crop.noisy, crop.target, crop.mask
        # One image, and all of it counts; or what both have measured.
        mask = torch.ones_like(mask) if config.pairing != "x_y" else mask * ~_saturated(noisy, pair.f_overexposure_lb)
        is_bayer = pair.sensor == "Bayer"
        if config.pairing == "y_y":
            clean = self.store.noisy_rgb(index, *box)
        elif config.pairing == "x_x":
            noisy = _mosaic_of_truth(clean) if is_bayer else clean
        a, b = (pair.noise_a, pair.noise_b) if config.pairing == "x_x" else (pair.f_noise_a, pair.f_noise_b)
        if train and pair.f_is_clean and config.clean_noise is not None:
            sensor = config.clean_noise.draw(rng)
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            noisy = add_poisson_gaussian(noisy, sensor.a, sensor.b, generator=generator).clamp_max_(1)
            a, b = a + sensor.a, b + sensor.b
        if config.pairing == "x_y" and config.gain != "never":
            gain = pair.raw_gain if config.input == "bayer" and pair.raw_gain is not None else pair.rgb_gain
            if config.gain == "input":
                noisy, a, b = noisy * gain, a * gain, b * gain**2
            else:
                clean = clean / gain
        assert pair.xyz_to_camera is not None
        matrix = torch.tensor(pair.xyz_to_camera, dtype=torch.float64).reshape(3, 3)
        if config.input == "bayer":
            noisy, clean, mask = self._oriented(noisy, clean, mask, rng, train)
            return _Sample(noisy, clean, mask, matrix, (a, b))
        if is_bayer:
            noisy = clean if config.pairing == "x_x" else self._noisy_picture(index, box, pair)
        noisy, clean = (camera_rgb_to_lin_rec2020(x, xyz_to_camera=matrix) for x in (noisy, clean))
        if config.input == "developed":
            develop = draw_development(clean, rng)
            noisy, clean = develop(noisy), develop(clean)
        noisy, clean, mask = self._oriented(noisy, clean, mask, rng, train)
        return _Sample(noisy, clean, mask, XYZ_TO_LIN_REC2020.float(), (a, b))

    def _noisy_picture(self, index: int, box: tuple[int, int, int, int], pair: Pair) -> Tensor:
        """(3, h, w) camera RGB of the noisy image, at the gain that is asked for."""
        rgb = self.store.noisy_rgb(index, *box)
        return rgb * pair.rgb_gain if self.config.pairing == "x_y" and self.config.gain == "input" else rgb

    def _oriented(
        self, noisy: Tensor, clean: Tensor, mask: Tensor, rng: np.random.Generator, train: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mirrored and transposed at random where that is wanted; two lines smaller then, whatever was drawn."""
        if not (train and self.config.flips):
            return noisy, clean, mask
        mirror_rows, mirror_columns, transpose = (bool(x) for x in rng.integers(2, size=3))
        packed = noisy.shape[0] == 4
        planes = [unpack_cfa(noisy)[None] if packed else noisy, clean, mask]
        for position, plane in enumerate(planes):
            # A mirrored mosaic of even sides begins with the last colour: one line less on each side, and it is red.
            plane = plane.flip(1)[:, 1:-1] if mirror_rows else plane[:, :-2]
            plane = plane.flip(2)[:, :, 1:-1] if mirror_columns else plane[:, :, :-2]
            planes[position] = plane.mT if transpose else plane
        noisy, clean, mask = planes
        return pack_cfa(noisy[0]) if packed else noisy, clean, mask


def _saturated(noisy: Tensor, clipping: float) -> Tensor:
    """(1, H, W), where a noisy image holds no measurement: its sites, of a mosaic all four of a CFA tile."""
    clipped = (noisy >= clipping).any(dim=0, keepdim=True)
    return clipped.repeat_interleave(2, 1).repeat_interleave(2, 2) if noisy.shape[0] == 4 else clipped


def _mosaic_of_truth(rgb: Tensor) -> Tensor:
    """What an RGGB sensor keeps of a truth, packed; the crop begins at a red site."""
    return torch.stack([rgb[0, ::2, ::2], rgb[1, ::2, 1::2], rgb[1, 1::2, ::2], rgb[2, 1::2, 1::2]])


def _stacked(samples: Sequence[_Sample]) -> Batch:
    return Batch(
        noisy=torch.stack([s.noisy for s in samples]),
        clean=torch.stack([s.clean for s in samples]),
        mask=torch.stack([s.mask for s in samples]),
        xyz_to_camera=torch.stack([s.xyz_to_camera for s in samples]).float(),
        noise=torch.tensor([s.noise for s in samples], dtype=torch.float32),
    )


def _iso_range(text: str) -> tuple[float, float]:
    """`800-3200` as numbers; an end that is left out has no limit."""
    low, dash, high = text.partition("-")
    try:
        found = (float(low or 0), float(high) if high else float("inf"))
    except ValueError:
        found = (1.0, 0.0)
    if not dash or found[0] >= found[1]:
        raise ValueError(f"isos: {text!r} is no range of ISO values: write it as 800-3200, 3200- or -800")
    return found
