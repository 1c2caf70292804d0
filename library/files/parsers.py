"""How metadata is read by parsers that are not ours: in silence, and without what a damaged file makes them raise.

Tags are welcome, the samples are what counts: a directory that exifread, tifffile or OpenEXR trip over, by whatever
exception, costs its tags and never the mosaic. Samples are not read like this, since whoever misses them must be told.
"""

from __future__ import annotations

import contextlib
import logging

_PARSERS = ("exifread", "tifffile")
_SILENCE = logging.NullHandler()


def silence_parsers() -> None:
    """Keep exifread and tifffile, which report damage through logging, from printing it where none is configured."""
    for name in _PARSERS:
        logging.getLogger(name).addHandler(_SILENCE)


def metadata_or_nothing() -> contextlib.suppress:
    """A context to read metadata in. Whatever damage makes a parser raise ends it and goes no further, so that what is
    to come of it needs a value before, or a `return` after."""
    silence_parsers()
    return contextlib.suppress(Exception)
