"""Scenes as memory-mapped 16-bit arrays with an index: reading a crop touches only the crop."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from upath import UPath

from library.errors import DataError
from library.files.atomic import folder_made_once
from library.files.places import is_local, local_copy, place

_FORMAT = 1
INDEX = "index.json"
"""Written after the scenes: a store is whole when it is there."""
_BRIGHTEST = 16.0
"""Times white. What is brighter, such as the sun in a panorama, is cut, or 16 bits would leave the shadows no codes."""


@dataclass(frozen=True)
class Scene:
    """A noise-free picture to make training samples of."""

    name: str
    rgb: np.ndarray
    """(H, W, 3) float, scene-linear, white at 1. Values below 0 are stored as 0; above 1 is legal."""
    space: Literal["lin_srgb", "camera_rgb"]
    xyz_to_camera: np.ndarray | None = None
    """(3, 3), for camera_rgb only: the camera is the one that took it, not one drawn at random."""


class SceneStore:
    """The scenes of one folder on disk; opened once per process."""

    def __init__(self, folder: str | Path | UPath) -> None:
        """
        folder  one in an object store is copied to this machine first
        raises  DataError when the folder holds no store of this format
        """
        source = place(folder)
        self.folder = local_copy(source, last=INDEX)
        remedy = "delete the folder" if is_local(source) else f"delete the folder and {self.folder}, its copy here"
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            if index["format"] == _FORMAT:
                self.digest: str = index["digest"]
                self._scenes = index["scenes"]
                self._arrays = [
                    np.load(self.folder / entry["file"], mmap_mode="r", allow_pickle=False) for entry in self._scenes
                ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: holds no scene store ({error}); {remedy}, and the next run makes it anew"
            ) from None
        if index["format"] != _FORMAT:
            raise DataError(
                f"{folder}: is a scene store of format {index['format']}, and this version reads format {_FORMAT}; "
                f"{remedy}"
            )

    @staticmethod
    def create(folder: str | Path | UPath, scenes: Iterable[Scene], digest: str) -> None:
        """Write a store, whole or not at all. One that is whole by then stays, since others may be reading it.

        folder  its path names the content, as `digest` does
        digest  of the sources, and of how the scenes were made of them
        """
        with folder_made_once(folder, last=INDEX) as temporary:
            entries = []
            for number, scene in enumerate(scenes):
                scale = min(max(1.0, float(scene.rgb.max())), _BRIGHTEST)
                file = f"{number:06d}.npy"
                np.save(temporary / file, np.round(np.clip(scene.rgb, 0, scale) * (65535 / scale)).astype(np.uint16))
                matrix = None if scene.xyz_to_camera is None else scene.xyz_to_camera.tolist()
                entries.append(
                    {"name": scene.name, "file": file, "scale": scale, "space": scene.space, "xyz_to_camera": matrix}
                )
            index = {"format": _FORMAT, "digest": digest, "scenes": entries}
            (temporary / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")

    @property
    def names(self) -> list[str]:
        return [entry["name"] for entry in self._scenes]

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a scene."""
        return self._arrays[index].shape[:2]

    def matrix(self, index: int) -> np.ndarray | None:
        """(3, 3) XYZ -> camera of a scene kept in camera RGB, None for one kept in linear sRGB."""
        matrix = self._scenes[index]["xyz_to_camera"]
        return None if matrix is None else np.array(matrix)

    def crop(self, index: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """(height, width, 3) float32, scene-linear, from 0 up; only these pixels are read."""
        codes = self._arrays[index][top : top + height, left : left + width]
        return codes.astype(np.float32) * np.float32(self._scenes[index]["scale"] / 65535)
