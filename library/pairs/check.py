"""What is wrong with a folder of raws before anything is made of them: files that cannot be read, that are not what
their names say, that are there twice, or whose exposure leaves nothing to learn from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from library.errors import RawFileError
from library.files.raw import RAW_SUFFIXES, RawImage, read_raw
from library.pairs.names import parse_name
from library.pairs.tree import images_below

_OVEREXPOSED = 0.99
"""Times the level at which a colour saturates."""
_UNDEREXPOSED = 0.001
"""Of white."""
_MOST = 0.75
"""Of an image that may be over- or under-exposed."""


@dataclass(frozen=True)
class Checked:
    """One file.

    sha256        None where the file could not be opened
    overexposed   fraction of `exposure`'s blocks in which a colour is saturated; None where the image could not be read
    underexposed  fraction of blocks that are black in all colours
    problems      (kind, reason): unreadable, altered, duplicate, badly exposed
    """

    path: str
    sha256: str | None
    overexposed: float | None
    underexposed: float | None
    problems: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "overexposed": self.overexposed,
            "underexposed": self.underexposed,
            "problems": [{"problem": kind, "reason": reason} for kind, reason in self.problems],
        }


@dataclass(frozen=True)
class CheckReport:
    """Every file, in order of paths."""

    files: tuple[Checked, ...]

    @property
    def bad(self) -> list[Checked]:
        return [file for file in self.files if file.problems]

    @property
    def exit_code(self) -> int:
        """1 when a file has a problem."""
        return 1 if self.bad else 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"files": [file.to_json() for file in self.files], "bad": len(self.bad)}

    def __str__(self) -> str:
        rows = [(kind, file.path, reason) for file in self.bad for kind, reason in file.problems]
        kinds = [kind for kind, _, _ in rows]
        counts = "".join(f", {kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
        # Paths stay whole, however long, so that they can be given to other programs.
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
        lines = [f"{kind:<{widths[0]}}  {path:<{widths[1]}}  {reason}" for kind, path, reason in rows]
        return "\n".join([*lines, f"{len(self.files)} files, {len(self.files) - len(self.bad)} of them good{counts}"])


def check(
    folder: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[Sequence[Future[Checked]]], Iterable[Future[Checked]]] = iter,
) -> CheckReport:
    """Look into every raw file below a folder, many at once. Each is fetched from the disk once.

    workers   threads; left out, one for each core that this process may use
    progress  hands on the files' results while it shows how far they are
    raises    DataError when there is no raw file
    """
    paths = _each_once(images_below(folder, RAW_SUFFIXES))
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            files = [done.result() for done in progress([pool.submit(check_file, path) for path in paths])]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return CheckReport(tuple(_mark_duplicates(files)))


def check_file(path: str | Path) -> Checked:
    """One file by itself; whether it is there twice, only `check` can know."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"cannot be read ({error.strerror}): check its permissions and the disk"
        return Checked(str(path), None, None, None, (("unreadable", reason),))
    problems: list[tuple[str, str]] = []
    name = parse_name(path.name)
    if name is not None and hashlib.sha1(data).hexdigest() != name.sha1:
        problems.append(("altered", "its bytes do not have the SHA-1 in its name: remove it and fetch it again"))
    sha256 = hashlib.sha256(data).hexdigest()
    del data
    over = under = None
    try:
        # Reads the file again, which comes from memory now.
        raw = read_raw(path)
    except RawFileError as error:
        problems.append(("unreadable", error.reason))
    else:
        over, under, both = exposure(raw)
        if both > _MOST:
            reason = f"{over:.0%} of it is over-exposed and {under:.0%} black: leave it out, or expose it anew"
            problems.append(("badly exposed", reason))
    return Checked(str(path), sha256, over, under, tuple(problems))


def _each_once(paths: Iterable[Path]) -> list[Path]:
    """Without the further places that a file has under the same name, as after `organize` in the download's folder."""
    first: dict[object, Path] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            first[path] = path  # reading it will say what is wrong
        else:
            first.setdefault((status.st_dev, status.st_ino, path.name), path)
    return list(first.values())


def exposure(raw: RawImage) -> tuple[float, float, float]:
    """Fractions of a raw's blocks, in [0, 1], that say nothing about the scene.

    A block is the least square that has all colours: 2x2 photosites of a Bayer mosaic, 3x3 of X-Trans.

    returns  (over, under, either): one photosite or more at 0.99 of saturation, counted from black; all photosites at
             0.001 of white or below
    """
    period = len(raw.black_level)
    over, under = np.empty(raw.mosaic.shape, bool), np.empty(raw.mosaic.shape, bool)
    for y, x in np.ndindex(period, period):
        black, saturated = raw.black_level[y, x], raw.clipping_level[y, x]
        plane = raw.mosaic[y::period, x::period]
        over[y::period, x::period] = plane >= black + _OVEREXPOSED * (saturated - black)
        under[y::period, x::period] = plane <= black + _UNDEREXPOSED * (raw.white_level - black)
    side = 2 if period == 2 else 3
    over, under = _blocks(over, side).any(axis=(1, 3)), _blocks(under, side).all(axis=(1, 3))
    return float(over.mean()), float(under.mean()), float((over | under).mean())


def _blocks(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W) -> (H / side, side, W / side, side), without the lines that make no whole block."""
    height, width = (length // side for length in image.shape)
    return image[: height * side, : width * side].reshape(height, side, width, side)


def _mark_duplicates(files: Sequence[Checked]) -> Iterable[Checked]:
    """Of files with the same bytes the first is the one to keep. Those that cannot be read are bad enough."""
    first: dict[str, str] = {}
    for file in files:
        readable = file.overexposed is not None
        original = first.setdefault(file.sha256, file.path) if readable and file.sha256 else file.path
        if original != file.path:
            problem = ("duplicate", f"has the bytes of {original}: remove one of the two")
            file = Checked(file.path, file.sha256, file.overexposed, file.underexposed, (*file.problems, problem))
        yield file
