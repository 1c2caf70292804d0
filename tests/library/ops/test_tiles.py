from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.ops.tiles import plan_tiles

LATTICES = st.sampled_from([1, 2, 4, 16])


@given(LATTICES, st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.integers(0, 4))
def test_each_pixel_is_covered_once_by_tiles_on_the_lattice_that_see_their_halo(
    lattice: int, rows: int, columns: int, tile: int, halo: int
) -> None:
    height, width = rows * lattice, columns * lattice
    tiles = plan_tiles(height, width, tile=tile * lattice, halo=halo * lattice, lattice=lattice)
    covered = np.zeros((height, width), int)
    for t in tiles:
        covered[slice(*t.rows), slice(*t.columns)] += 1
        for core, window, side in ((t.rows, t.window_rows, height), (t.columns, t.window_columns, width)):
            assert core.start % lattice == window.start % lattice == window.stop % lattice == 0
            assert 0 <= window.start <= core.start < core.stop <= window.stop <= side
            # The halo is there, or the image ends.
            assert window.start == 0 or core.start - window.start >= halo * lattice
            assert window.stop == side or window.stop - core.stop >= halo * lattice
    assert (covered == 1).all()


@given(LATTICES, st.integers(1, 20), st.integers(1, 6), st.integers(0, 4))
def test_all_windows_of_an_image_have_one_shape(lattice: int, rows: int, tile: int, halo: int) -> None:
    tiles = plan_tiles(rows * lattice, 7 * lattice, tile=tile * lattice, halo=halo * lattice, lattice=lattice)
    assert len({tuple(span.stop - span.start for span in (t.window_rows, t.window_columns)) for t in tiles}) == 1


def test_an_image_that_fits_one_window_is_seen_whole() -> None:
    [tile] = plan_tiles(32, 48, tile=64, halo=16, lattice=16)
    assert (tile.rows, tile.window_columns) == ((0, 32), (0, 48))


@pytest.mark.parametrize("name", ["height", "width", "tile", "halo"])
def test_what_is_off_the_lattice_is_refused_by_name(name: str) -> None:
    sizes = {"height": 32, "width": 32, "tile": 16, "halo": 16} | {name: 24}
    with pytest.raises(ValueError, match=f"{name} is 24, which is not a multiple of the lattice 16"):
        plan_tiles(sizes["height"], sizes["width"], tile=sizes["tile"], halo=sizes["halo"], lattice=16)
