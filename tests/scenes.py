"""Small pictures to train on, painted rather than kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def paint_scenes(folder: Path) -> Path:
    """Six pictures of 184 x 176 with edges and gradients, in a folder, which is made."""
    folder.mkdir(exist_ok=True)
    rows, columns = np.mgrid[:176, :184] / 184
    for number in range(6):
        rng = np.random.default_rng(number)
        waves = [np.sin(rng.uniform(5, 40) * rows + rng.uniform(5, 40) * columns) for _ in range(3)]
        picture = 0.5 + 0.3 * np.stack(waves, axis=-1) + 0.2 * (rows + columns > 1)[..., None]
        Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).save(folder / f"scene{number}.png")
    return folder
