from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.ops.tiles import Span, plan_tiles

units = st.integers(1, 40)
plans = st.builds(
    lambda lattice, height, width, tile, halo: {
        "height": height * lattice,
        "width": width * lattice,
        "tile": tile * lattice,
        "halo": halo * lattice,
        "lattice": lattice,
    },
    st.sampled_from([1, 2, 4, 16]),
    units,
    units,
    units,
    st.integers(0, 8),
)


@given(plans)
def test_every_pixel_is_covered_once(plan: dict[str, int]):
    covered = np.zeros((plan["height"], plan["width"]), int)
    for tile in plan_tiles(**plan):
        covered[slice(*tile.rows), slice(*tile.columns)] += 1
    assert (covered == 1).all()


@given(plans)
def test_windows_lie_inside_the_image_and_carry_the_halo_or_end_at_its_border(plan: dict[str, int]):
    for tile in plan_tiles(**plan):
        for core, window, side in (
            (tile.rows, tile.window_rows, plan["height"]),
            (tile.columns, tile.window_columns, plan["width"]),
        ):
            assert 0 <= window.start <= core.start < core.stop <= window.stop <= side
            assert window.start == 0 or core.start - window.start >= plan["halo"]
            assert window.stop == side or window.stop - core.stop >= plan["halo"]


@given(plans)
def test_everything_begins_and_ends_on_the_lattice(plan: dict[str, int]):
    for tile in plan_tiles(**plan):
        assert all(edge % plan["lattice"] == 0 for span in tile for edge in span)


@given(plans)
def test_all_windows_have_one_shape_and_no_tile_is_larger_than_asked(plan: dict[str, int]):
    """Of another shape, a convolution may be computed by another kernel, which rounds differently."""
    tiles = plan_tiles(**plan)
    shapes = {(t.window_rows.stop - t.window_rows.start, t.window_columns.stop - t.window_columns.start) for t in tiles}
    reach = plan["tile"] + 2 * plan["halo"]
    assert shapes == {(min(reach, plan["height"]), min(reach, plan["width"]))}
    assert all(span.stop - span.start <= plan["tile"] for t in tiles for span in (t.rows, t.columns))


@given(plans)
def test_tiles_come_row_by_row_so_that_a_picture_can_be_written_as_it_grows(plan: dict[str, int]):
    starts = [(tile.rows.start, tile.columns.start) for tile in plan_tiles(**plan)]
    assert starts == sorted(starts)


def test_an_image_that_fits_one_tile_is_one_tile():
    (tile,) = plan_tiles(64, 32, tile=64, halo=16, lattice=16)
    assert tile == (Span(0, 64), Span(0, 32), Span(0, 64), Span(0, 32))


def test_a_plan_in_numbers():
    rows = sorted({(*t.rows, *t.window_rows) for t in plan_tiles(100, 8, tile=24, halo=8, lattice=4)})
    assert rows == [
        (0, 24, 0, 40),
        (24, 48, 16, 56),
        (48, 72, 40, 80),
        (72, 96, 60, 100),
        (96, 100, 60, 100),
    ]


@pytest.mark.parametrize("name", ["height", "width", "tile", "halo"])
def test_what_is_off_the_lattice_is_refused_by_name(name: str):
    plan = {"height": 64, "width": 64, "tile": 32, "halo": 16} | {name: 40}
    with pytest.raises(ValueError, match=rf"{name} is 40, which is not a multiple of the lattice 16"):
        plan_tiles(**plan, lattice=16)
    with pytest.raises(ValueError, match="tile is 0, but must be positive"):
        plan_tiles(64, 64, tile=0, halo=0, lattice=16)
