"""What an export says of itself. Whatever a bundle is exported to must do what the bundle does, on its golden tiles, or
it is not written."""

from __future__ import annotations

from dataclasses import dataclass

from upath import UPath


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from the bundle."""

    path: UPath
    what: str
    largest_difference: float
    """On the golden tiles, scene-linear."""
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.what}; golden tiles reproduced within {self.largest_difference:.2g} of white "
            f"({self.tolerance:g} is allowed)"
        )
