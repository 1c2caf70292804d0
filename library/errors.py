"""What can go wrong and be put right by the person who reads the message.

    StillgrainError
    ├── ConfigError        a key, a value or a combination of them in a config or on the command line
    ├── RawFileError       a raw file that cannot be used, and why
    ├── ImageFileError     an EXR, TIFF or picture that cannot be read or written
    ├── DataError          a folder of images, a store or a camera table that cannot be used
    ├── CheckpointError    a training state that is damaged or belongs to another run
    ├── BundleError        a bundle that is damaged, unknown, or does not reproduce its golden tiles
    └── StreamFileError    a compressed file that is damaged, of an unknown format, or made by a model not at hand

Every message says what is wrong, where, and what to do. Faults of our own are `assert`s, not these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upath import UPath


class StillgrainError(Exception):
    """Base of all errors that a user can fix."""


class ConfigError(StillgrainError, ValueError):
    """A configuration that cannot be used. Names the key and the remedy."""


class _FileError(StillgrainError):
    """An error about one file: `path`, `reason`, and both in the message.

    lasting  the bytes are at fault, so that they would meet it again wherever and whenever they are read. False for
             what the machine did: a process killed from outside, and all that the system answers when a file is opened
             or read. Of that ENOENT and EACCES hold until somebody mends them, EIO, ESTALE and ENOMEM may pass by
             themselves; none of them says anything about the bytes. Told of raws only
    """

    def __init__(self, path: str | Path | UPath, reason: str, *, lasting: bool = True) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason
        self.lasting = lasting

    def __reduce__(self) -> tuple[type[_FileError], tuple[str, str], dict[str, Any]]:
        # Exceptions cross process boundaries by their constructor's arguments, and what else they hold.
        return type(self), (self.path, self.reason), self.__dict__


class RawFileError(_FileError):
    """A raw file that cannot be read or is not one we can use."""


class ImageFileError(_FileError):
    """An image file (EXR, TIFF, PNG, ...) that cannot be read or written."""


class DataError(StillgrainError):
    """Training data that cannot be used."""


class CheckpointError(_FileError):
    """A checkpoint that is damaged or belongs to another run."""


class BundleError(_FileError):
    """A bundle that is damaged, of an unknown format, or does not reproduce its golden tiles."""


class StreamFileError(_FileError):
    """A compressed file that is damaged, of an unknown format, or made by a model that is not at hand."""
