"""How large a picture a file may claim to be: decoders allocate what a header says before they look for it."""

from __future__ import annotations

from pathlib import Path

from library.errors import ImageFileError

# Beyond what any lossless compression makes of a flat picture (deflate: 1032) and any real picture comes near to.
_MOST_OF_A_BYTE = 4096
_ALWAYS = 16 * 2**20


def largest_claim(num_bytes: int) -> int:
    """Bytes of samples that a file of `num_bytes` may say it holds."""
    return _ALWAYS + _MOST_OF_A_BYTE * num_bytes


def refuse_claims_beyond_reason(path: str | Path, height: int, width: int, bytes_per_pixel: float) -> None:
    """raises  ImageFileError for a size that is not above 0, or more than `largest_claim` of the file"""
    num_bytes = Path(path).stat().st_size
    if not (height > 0 and width > 0 and height * width * bytes_per_pixel <= largest_claim(num_bytes)):
        raise ImageFileError(
            path, f"claims {width} x {height} pixels in {num_bytes} bytes: it is damaged; copy it again"
        )
