"""Scenes for a first run on any machine: photographs that scikit-image ships, and dead-leaves images that are drawn
here.

Nothing is fetched: only images inside the two wheels are used. Dead leaves (Lee, Mumford, Huang 2001) have the
edge and scale statistics of natural images and train denoisers nearly as well as photographs (Achddou et al. 2021).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import numpy as np
import skimage.data
import torch
from matplotlib.cbook import get_sample_data

from library.datasets.store import Scene
from library.files.picture import read_image
from library.ops.transfer import srgb_decode

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "hubble_deep_field", "retina")
_GREYS = {"camera": (1.0, 1.0, 1.0), "brick": (1.0, 0.7, 0.5), "grass": (0.6, 1.0, 0.4), "gravel": (1.0, 0.95, 0.85)}
_NUM_DEAD_LEAVES = 6
DIGEST = f"samples-2-scikit-image-{importlib.metadata.version('scikit-image')}"
"""Names what `sample_scenes` yields."""


def sample_scenes() -> Iterator[Scene]:
    """About twenty scenes of 300 to 1,400 pixels a side in linear sRGB, in [0, 1]. Deterministic."""
    for name in _PHOTOGRAPHS:
        yield Scene(name, _linear(getattr(skimage.data, name)()), "lin_srgb")
    portrait = read_image(get_sample_data("grace_hopper.jpg", asfileobj=False))
    yield Scene("grace_hopper", _linear(portrait.rgb), "lin_srgb")
    left, right, _ = skimage.data.stereo_motorcycle()
    yield Scene("motorcycle_left", _linear(left), "lin_srgb")
    yield Scene("motorcycle_right", _linear(right), "lin_srgb")
    for name, tint in _GREYS.items():
        grey = getattr(skimage.data, name)()
        yield Scene(name, _linear(np.repeat(grey[..., None], 3, axis=2)) * np.array(tint, np.float32), "lin_srgb")
    for number in range(_NUM_DEAD_LEAVES):
        yield Scene(f"dead_leaves_{number}", dead_leaves(512, np.random.default_rng(number)), "lin_srgb")


def dead_leaves(side: int, rng: np.random.Generator, *, smallest_radius: float = 3.0) -> np.ndarray:
    """Opaque discs that fall on one another, of radii with density r^-3 (scale invariance), each shaded across and
    slightly textured.

    returns  (side, side, 3) float32 linear sRGB in [0, 1]
    """
    image = np.zeros((side, side, 3), np.float32)
    covered = np.zeros((side, side), bool)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    largest_radius = side / 4
    # Drawn front to back, so that one is done when nothing shows through.
    while not covered.all():
        u = rng.uniform()
        radius = (smallest_radius**-2 + u * (largest_radius**-2 - smallest_radius**-2)) ** -0.5
        y, x = rng.uniform(-radius, side + radius, 2)
        color = rng.uniform(0.02, 1, 3) ** 2 * rng.uniform(0.3, 1)
        slope = rng.normal(0, 0.3, 2) / radius
        texture = rng.uniform(0, 0.15)
        box = np.s_[max(0, int(y - radius)) : int(y + radius) + 2, max(0, int(x - radius)) : int(x + radius) + 2]
        dy, dx = rows[box] - np.float32(y), columns[box] - np.float32(x)
        visible = (dy**2 + dx**2 <= radius**2) & ~covered[box]
        shade = 1 + slope[0] * dy + slope[1] * dx + texture * rng.standard_normal(dy.shape, dtype=np.float32)
        image[box][visible] = (color * shade[..., None])[visible]
        covered[box] |= visible
    return np.clip(image, 0, 1)


def _linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB (H, W, 3), 8 bits or float in [0, 1], to linear float32."""
    scale = 255 if srgb.dtype == np.uint8 else 1
    return srgb_decode(torch.from_numpy(srgb.astype(np.float32) / scale)).numpy()
