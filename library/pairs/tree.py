"""Scene trees: `<root>/.../<scene>/gt/*` holds clean images, `<root>/.../<scene>/*` noisy ones of the same view.

RawNIND's downloads become one by their names, and any folders of a user's own that look so are one already.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from library.errors import DataError
from library.files.atomic import whole_file
from library.files.raw import RAW_SUFFIXES
from library.pairs.names import SENSORS, parse_name

IMAGE_SUFFIXES = RAW_SUFFIXES | {".exr", ".tif", ".tiff"}
"""Names that images of a scene end with, in lower case: raw files, and pictures in linear light made of them."""
_GT = "gt"


@dataclass(frozen=True)
class Scene:
    """The images of one view, in order of their names.

    name    the folder's path below the root, without a leading `Bayer` or `X-Trans`
    sensor  `Bayer` or `X-Trans`, as the path says; `Bayer` where it does not
    """

    name: str
    sensor: str
    folder: Path
    gt: tuple[Path, ...]
    noisy: tuple[Path, ...]


def scan_tree(root: str | Path) -> list[Scene]:
    """The scenes below a folder, by sensor and name: every folder that has a folder `gt`.

    Only names are looked at. Where both sensors have a scene of the same name, only Bayer's counts. Names that begin
    with a dot are left out, and a scene is not searched for others.

    raises  DataError when there is no scene, when two have one name, or when a folder cannot be searched
    """
    root = Path(root)
    scenes: dict[str, Scene] = {}
    for folder, folders, names in _walk(root):
        clean = next((name for name in folders if name.lower() == _GT), None)
        if clean is None:
            continue
        folders.clear()
        parts = folder.relative_to(root).parts
        sensor = next((sensor for sensor in SENSORS if parts and parts[0] == sensor), None)
        # A root that is itself a scene is one tree of one scene.
        name = "/".join(parts[1:] if sensor else parts) or root.resolve().name
        gt = tuple(path for path in sorted((folder / clean).iterdir()) if _is_image(path))
        noisy = tuple(folder / name for name in names if _is_image(folder / name))
        scene = Scene(name, sensor or "Bayer", folder, gt, noisy)
        other = scenes.setdefault(name, scene)
        if other is not scene and other.sensor == scene.sensor:
            raise DataError(f"{folder} and {other.folder} are both called {name}: rename one of the two scenes")
        if other.sensor == "X-Trans":
            scenes[name] = scene
    if not scenes:
        raise DataError(
            f"{root}: holds no scene: clean images belong in SCENE/gt, noisy ones of the same view in SCENE; "
            "`stillgrain data organize` sorts a RawNIND download so"
        )
    return sorted(scenes.values(), key=lambda scene: (scene.sensor, scene.name))


def images_below(root: str | Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Every file below a folder, or the file itself, that ends with one of some suffixes (in lower case), sorted.

    raises  DataError when there is none
    """
    root, suffixes = Path(root), frozenset(suffixes)
    found = [folder / name for folder, _, names in _walk(root) for name in names] if root.is_dir() else [root]
    images = sorted(path for path in found if path.suffix.lower() in suffixes)
    if not images:
        raise DataError(f"{root}: there is no image file there: give the folder that holds them")
    return images


Outcome = Literal["placed", "there", "conflict", "failed", "unknown"]


@dataclass(frozen=True)
class Move:
    """What became of one file: its outcome, its place in the tree if its name has one, and a word on what is wrong."""

    source: Path
    target: Path | None
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Organized:
    """What `organize` did, or would do.

    moves  by source; `placed` now, `there` before with the same bytes, `conflict` with other bytes, `unknown` name
    """

    moves: tuple[Move, ...]
    is_dry_run: bool

    def having(self, outcome: Outcome) -> list[Move]:
        return [move for move in self.moves if move.outcome == outcome]

    @property
    def exit_code(self) -> int:
        """1 when a file that has a place could not be put there."""
        return 1 if self.having("conflict") or self.having("failed") else 0

    def __str__(self) -> str:
        lines = [
            f"{move.source}: {move.reason}" for move in self.moves if move.outcome in ("conflict", "failed", "unknown")
        ]
        counts = (
            f"{len(self.having('placed'))} files {'would be ' if self.is_dry_run else ''}placed",
            f"{len(self.having('there'))} there already",
            f"{len(self.having('conflict')) + len(self.having('failed'))} could not be",
            f"{len(self.having('unknown'))} of unknown names left alone",
        )
        return "\n".join([*lines, ", ".join(counts)])


def organize(source: str | Path, root: str | Path, *, move: bool = False, dry_run: bool = False) -> Organized:
    """Put RawNIND's files, found by their names at any depth, at their places in a tree.

    A second name is given to each file, which takes no room, or it is copied where the tree lies on another disk.
    Nothing that is there is ever replaced, and doing it again changes nothing.

    move     take the old name away
    dry_run  only say what would be done
    raises   DataError when `source` is no folder
    """
    source, root = Path(source), Path(root)
    if not source.is_dir():
        raise DataError(f"{source}: is no folder: give the one that holds the downloaded files")
    # Listed before anything is placed, since the tree may lie in the very folder.
    files = [folder / name for folder, _, names in _walk(source) for name in names]
    place = _plan if dry_run else _move if move else _link
    taken: dict[Path, Path] = {}
    return Organized(tuple(_organize(file, root, place, taken) for file in sorted(files)), dry_run)


def _organize(file: Path, root: Path, place: Callable[[Path, Path], None], taken: dict[Path, Path]) -> Move:
    name = parse_name(file.name)
    if name is None:
        return Move(file, None, "unknown", "is no name of RawNIND")
    target = root / name.place
    # In a dry run nothing is there yet but what an earlier file would have put there.
    there = taken.get(target, target)
    try:
        if there.exists():
            if not (there.samefile(file) or filecmp.cmp(file, there, shallow=False)):
                return Move(file, target, "conflict", f"{target} is there with other bytes: remove the damaged one")
            if place is _move and not _same_path(file, target):
                file.unlink()
            return Move(file, target, "there")
        place(file, target)
    except OSError as error:
        return Move(file, target, "failed", f"cannot become {target} ({error.strerror}): check permissions and disk")
    taken[target] = file if place is _plan else target
    return Move(file, target, "placed")


def _plan(file: Path, target: Path) -> None:
    """Leaves everything as it is."""


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)  # fails where something is there, and so replaces nothing
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        with whole_file(target) as temporary:
            shutil.copy2(file, temporary)


def _move(file: Path, target: Path) -> None:
    _link(file, target)
    file.unlink()


def _same_path(one: Path, other: Path) -> bool:
    """Whether two names are one entry of one folder; two names of one file are not."""
    return one.name == other.name and one.parent.samefile(other.parent)


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _walk(root: Path) -> Iterator[tuple[Path, list[str], Sequence[str]]]:
    """`os.walk` in order of names, through links but each folder once, without names that begin with a dot. Folders
    taken out of the list are not searched."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_refuse):
        status = os.stat(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield Path(folder), folders, sorted(name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be searched ({error.strerror}): check the path and its permissions")
