"""Who writes a folder that one process at a time may write, on whatever node and in whatever store."""

from __future__ import annotations

import json
import os
import platform
import secrets

from upath import UPath

from library.errors import StillgrainError
from library.files.atomic import whole_file
from library.files.places import read_text

_FILE = "writer.json"


class Writer:
    """This process, as one that writes a folder. Who claims it last has it; another finds out at its next check.

    No lock: a process that was killed leaves none behind, and object stores know none.

    folder  that is written
    what    what it is, in an error: `run`, `sweep`
    """

    def __init__(self, folder: UPath, what: str) -> None:
        self._folder, self._what = folder, what
        self._token = secrets.token_hex(8)

    def claim(self) -> None:
        """From now on this process is the one that writes."""
        writer = {"token": self._token, "host": platform.node(), "process": os.getpid()}
        with whole_file(self._folder / _FILE) as temporary:
            temporary.write_text(json.dumps(writer), encoding="utf-8")

    def check(self) -> None:
        """raises  StillgrainError when another process has claimed the folder since"""
        writer = json.loads(read_text(self._folder / _FILE))
        if writer["token"] != self._token:
            raise StillgrainError(
                f"{self._folder}: process {writer['process']} on {writer['host']} has started to write this "
                f"{self._what}, so this one stops; start a {self._what} of the same name only once, or give it another "
                "name"
            )
