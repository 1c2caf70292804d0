"""Which scenes are trained on, validated on, tested on: whole scenes, by their names alone.

RawNIND keeps its reserve in its names (Brummer and De Vleeschouwer 2025; the list `test_reserve.yaml` of its code): ten
scenes `TEST_*` and six `UNK_TEST_*` are for testing, and the other `UNK_*`, of a camera that nothing else was taken
with, are left out of training so that this camera stays unseen. Its code validates on its test scenes; here scenes for
validation come from the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from library.config import Frozen
from library.errors import DataError

Part = Literal["train", "validation", "test", "unseen"]


class Split(Frozen):
    """Patterns are of whole scene names, `*` and `?` as in file names; upper and lower case differ."""

    test: tuple[str, ...] = ("TEST_*", "UNK_TEST_*")
    """Scenes that no training ever sees, in no part of it."""
    unseen: tuple[str, ...] = ("UNK_*",)
    """Scenes that are not used: of cameras that shall stay unseen."""
    validation: tuple[str, ...] | Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the rest: patterns, or a fraction, chosen by a hash of the name so that a growing tree moves no scene from one
    side to the other."""

    def part_of(self, scene: str) -> Part:
        """Where a scene belongs; what is reserved for testing wins over all else."""
        if _matches(scene, self.test):
            return "test"
        if _matches(scene, self.unseen):
            return "unseen"
        held_out = self.validation
        validates = _matches(scene, held_out) if isinstance(held_out, tuple) else fraction_of(scene) < held_out
        return "validation" if validates else "train"

    def parts(self, scenes: Iterable[str]) -> dict[str, Part]:
        """The part of each scene. Where a fraction of few scenes is none, the first by hash validates.

        raises  DataError when nothing is left to train on, or to validate on
        """
        parts: dict[str, Part] = {scene: self.part_of(scene) for scene in sorted(set(scenes))}
        trained = [scene for scene, part in parts.items() if part == "train"]
        if "validation" not in parts.values() and not isinstance(self.validation, tuple) and len(trained) > 1:
            first = min(trained, key=fraction_of)
            parts[first] = "validation"
            trained.remove(first)
        num_validation = sum(part == "validation" for part in parts.values())
        if not trained or not num_validation:
            raise DataError(
                f"dataset.split leaves {len(trained)} scenes to train on and {num_validation} to validate on, of "
                f"{len(parts)}: {', '.join(parts) or 'none'}; change split.test, split.unseen or split.validation"
            )
        return parts


def fraction_of(name: str) -> float:
    """A number in [0, 1) that belongs to a name alone, uniform over names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) / 2**56


def _matches(scene: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(scene, pattern) for pattern in patterns)
