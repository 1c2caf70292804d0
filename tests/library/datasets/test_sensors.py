from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from library.datasets.sensors import AnySensor, ParametricSensor, ProfiledSensor, draw_matrix
from library.errors import DataError
from library.ops.color import D65_WHITE_XYZ

HEADER = "maker,model,iso,a_r,a_g,a_b,b_r,b_g,b_b,skip\n"


def drawn(sensor: Any, number: int = 200) -> np.ndarray:
    """(number, 2) of a and b."""
    rng = np.random.default_rng(0)
    return np.array([(one.a, one.b) for one in (sensor.draw(rng) for _ in range(number))])


def table(folder: Path, text: str) -> Path:
    path = folder / "profiles"
    path.write_text(text, encoding="utf-8")
    return path


# --- colour -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_the_as_shot_white_balance_makes_daylight_neutral(seed: int):
    sensor = ParametricSensor().draw(np.random.default_rng(seed))
    balanced = sensor.as_shot_white_balance * (sensor.xyz_to_camera @ D65_WHITE_XYZ.numpy())
    np.testing.assert_allclose(balanced, np.ones(3), rtol=1e-12)
    assert sensor.as_shot_white_balance[1] == 1


@given(st.integers(0, 2**32))
def test_a_drawn_matrix_is_one_a_camera_could_have(seed: int):
    matrix = draw_matrix(np.random.default_rng(seed))
    red, green, blue = matrix @ D65_WHITE_XYZ.numpy()
    assert green == pytest.approx(1)
    assert 1.9 <= 1 / red <= 2.4
    assert 1.5 <= 1 / blue <= 1.9
    assert np.linalg.cond(matrix) < 20


# --- noise from published ranges --------------------------------------------------------------------------------------


def test_shot_noise_is_log_uniform_in_its_range_and_read_noise_follows_it():
    sensor = ParametricSensor(shot=(1e-4, 1e-2))
    a, b = drawn(sensor, 4000).T
    assert (a >= 1e-4).all()
    assert (a <= 1e-2).all()
    quartiles = np.quantile(np.log10(a), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-3.5, -3, -2.5], atol=0.05)
    scatter = np.log(b) - (2.18 * np.log(a) + 1.20)
    assert abs(scatter.mean()) < 0.02
    assert scatter.std() == pytest.approx(0.26, rel=0.05)


def test_a_range_of_one_value_gives_that_value_and_no_scatter_none():
    a, b = drawn(ParametricSensor(shot=(2e-3, 2e-3), read_scatter=0), 5).T
    np.testing.assert_allclose(a, 2e-3)
    np.testing.assert_allclose(b, np.exp(2.18 * np.log(2e-3) + 1.20))


def test_every_draw_consumes_as_many_random_numbers():
    """Or a changed range would change what is drawn after it."""
    after = []
    for sensor in (ParametricSensor(), ParametricSensor(shot=(1e-6, 1e-1), read_scatter=0)):
        rng = np.random.default_rng(0)
        sensor.draw(rng)
        after.append(rng.random())
    assert after[0] == after[1]


def test_a_range_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match=r"\[0.1, 0.01\] ends before it begins: give \[smallest, largest\]"):
        ParametricSensor(shot=(0.1, 0.01))


def test_the_kind_decides_which_sensor_it_is():
    adapter = TypeAdapter(AnySensor)
    assert isinstance(adapter.validate_python({"kind": "parametric"}), ParametricSensor)
    assert isinstance(adapter.validate_python({"kind": "profiles", "table": "x.csv"}), ProfiledSensor)


# --- noise from a table -----------------------------------------------------------------------------------------------


def test_rows_of_a_table_are_drawn_with_the_noise_of_green_at_its_scale(tmp_path: Path):
    path = table(tmp_path, HEADER + "A,One,100,9,1e-4,9,9,2e-7,9,0\n")
    np.testing.assert_allclose(drawn(ProfiledSensor(table=str(path)), 3), [[7e-4, 14e-7]] * 3)
    np.testing.assert_allclose(drawn(ProfiledSensor(table=str(path), scale=1), 3), [[1e-4, 2e-7]] * 3)


def test_placeholder_rows_are_left_out_and_read_noise_below_zero_is_none(tmp_path: Path):
    path = table(
        tmp_path,
        HEADER
        + "A,One,100,9,1e-4,9,9,-2e-7,9,0\n"
        + "A,One,200,9,2e-4,9,9,2e-7,9,1\n"  # marked
        + "A,One,400,9,0,9,9,2e-7,9,0\n"  # a = 0: never measured
        + "A,One,800,9,-1,9,9,2e-7,9,\n",
    )
    np.testing.assert_allclose(drawn(ProfiledSensor(table=str(path), scale=1), 20), [[1e-4, 0]] * 20)


def test_every_camera_is_as_likely_however_many_rows_it_has(tmp_path: Path):
    rows = [f"A,Many,{100 + i},9,1e-4,9,9,0,9,0" for i in range(50)] + ["B,Few,100,9,1e-3,9,9,0,9,0"]
    path = table(tmp_path, HEADER + "\n".join(rows))
    a = drawn(ProfiledSensor(table=str(path), scale=1), 1000)[:, 0]
    assert np.mean(a == 1e-3) == pytest.approx(0.5, abs=0.05)


def test_only_iso_values_in_the_range_are_drawn(tmp_path: Path):
    rows = [f"A,One,{iso},9,{iso}e-6,9,9,0,9,0" for iso in (50, 100, 400, 1600)]
    path = table(tmp_path, HEADER + "\n".join(rows))
    a = drawn(ProfiledSensor(table=str(path), scale=1, iso=(100, 400)))[:, 0]
    assert {round(value * 1e6) for value in a} == {100, 400}
    with pytest.raises(DataError, match=r"no usable profile between ISO 5 and 6; widen sensor\.iso"):
        ProfiledSensor(table=str(path), iso=(5, 6)).draw(np.random.default_rng(0))


def test_darktables_own_json_gives_the_same_as_the_table(tmp_path: Path):
    profiles = [
        {"name": "One iso 100", "iso": 100, "a": [9, 1e-4, 9], "b": [9, 2e-7, 9]},
        {"name": "One iso 200", "iso": 200, "skip": True, "a": [9, 5e-4, 9], "b": [9, 2e-7, 9]},
    ]
    text = json.dumps(
        {"version": 0, "noiseprofiles": [{"maker": "A", "models": [{"model": "One", "profiles": profiles}]}]}
    )
    np.testing.assert_allclose(drawn(ProfiledSensor(table=str(table(tmp_path, text))), 5), [[7e-4, 14e-7]] * 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "maker,model,iso\nA,One,100\n",
        HEADER + "A,One,100\n",
        HEADER + "A,One,many,9,1e-4,9,9,2e-7,9,0\n",
        "{",
        "{}",
        '{"noiseprofiles": 5}',
        '{"noiseprofiles": [{"maker": "A", "models": [{"model": "B", "profiles": [{"iso": 1, "a": [1], "b": [1]}]}]}]}',
    ],
)
def test_what_is_no_table_of_profiles_is_refused_by_its_name(tmp_path: Path, text: str):
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=rf"{path}: (is not a table of noise profiles|has no usable profile)"):
        ProfiledSensor(table=str(path)).draw(np.random.default_rng(0))


def test_a_missing_or_binary_table_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        ProfiledSensor(table=str(tmp_path / "absent.csv")).draw(np.random.default_rng(0))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0\x01")
    with pytest.raises(DataError, match="is not a table"):
        ProfiledSensor(table=str(tmp_path / "binary")).draw(np.random.default_rng(0))


def test_the_noise_of_real_cameras_lies_where_sensors_lie(shared_data: Path):
    sensor = ProfiledSensor(table=str(shared_data / "tables" / "noise_profiles_darktable.csv"))
    a, b = drawn(sensor, 2000).T
    # One electron per DN of a 14-bit sensor with 10,000 to 100,000 electrons, ISO 100 to 25,600.
    assert (a > 1e-6).all()
    assert (a < 0.2).all()
    assert 1e-4 < np.median(a) < 3e-3
    assert (b >= 0).all()
    assert (b < 0.05).all()
    assert len(np.unique(a)) > 500
