"""Classical codecs that a learned one is compared with, each behind one interface: floats in, the bytes of a file out.

`ladder("picture")` and its like give the settings that make a curve. Codecs of integers (`jpeg_xl.py` and its
neighbours) know no raw; `base.py` brings mosaics and pictures to integers and back.
"""

from __future__ import annotations

from library.inference.compressors.ladders import ladder

__all__ = ["ladder"]
