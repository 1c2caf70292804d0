from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.pairs.names import RawNindName, parse_name

SHA1 = "0123456789abcdef0123456789abcdef01234567"

PARTS = st.text("ABCxyz019-. ", min_size=1, max_size=6).filter(lambda part: bool(part.strip(".")))
SCENES = st.builds(
    lambda prefix, parts: prefix + "_".join(parts),
    st.sampled_from(["", "TEST_", "UNK_", "UNK_TEST_"]),
    st.lists(PARTS, min_size=1, max_size=4),
)
LABELS = st.one_of(st.integers(1, 999999).map(str), st.sampled_from(["Hi 3200", "Unknown", "", "Hi1"]))


@given(
    sensor=st.sampled_from(["Bayer", "X-Trans"]),
    scene=SCENES,
    gt=st.booleans(),
    iso_label=LABELS,
    sha1=st.text("0123456789abcdef", min_size=40, max_size=40),
    suffix=st.sampled_from([".arw", ".raf", ".cr2", ".nef", ".crw", ".dng", ".JPG", ".arw.xmp"]),
)
def test_a_name_made_of_parts_comes_apart_into_them(
    sensor: str, scene: str, gt: bool, iso_label: str, sha1: str, suffix: str
):
    name = f"{sensor}_{scene}_{'GT_' if gt else ''}ISO{iso_label}_sha1={sha1}{suffix}"
    assert parse_name(name) == RawNindName(name, sensor, scene, gt, iso_label, sha1, suffix)


@pytest.mark.parametrize(
    ("label", "iso"),
    [("100", 100), ("64000", 64000), ("65535", None), ("Hi 3200", 3200), ("Unknown", None), ("", None), ("0", None)],
)
def test_an_iso_is_a_number_unless_the_camera_said_none_or_the_most_that_exif_can(label: str, iso: float | None):
    name = parse_name(f"Bayer_scene_ISO{label}_sha1={SHA1}.arw")
    assert name is not None
    assert name.iso == iso


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (f"Bayer_TEST_7D-2_GT_ISO100_sha1={SHA1}.cr2", "Bayer/TEST_7D-2/gt"),
        (f"Bayer_MuseeL-bluebirds-A7C_ISO65535_sha1={SHA1}.arw", "Bayer/MuseeL-bluebirds-A7C"),
        (f"Bayer_UNK_TEST_LucieB_bw_drawing1_ISO100_sha1={SHA1}.cr2", "Bayer/UNK_TEST_LucieB_bw_drawing1"),
        (f"X-Trans_stairs_ISO_test_GT_ISO200_sha1={SHA1}.raf", "X-Trans/stairs_ISO_test/gt"),
        (f"X-Trans_GT_ISO200_ISO400_sha1={SHA1}.raf", "X-Trans/GT_ISO200"),
    ],
)
def test_a_file_belongs_to_its_sensor_scene_and_side(name: str, place: str):
    parsed = parse_name(name)
    assert parsed is not None
    assert parsed.place == f"{place}/{name}"


@pytest.mark.parametrize(
    "name",
    [
        "README.txt",
        "planted.json",
        f"Foveon_scene_ISO100_sha1={SHA1}.x3f",
        f"Bayer_scene_ISO100_sha1={SHA1[1:]}.arw",
        f"Bayer_scene_ISO100_sha1={SHA1}",
        f"Bayer_scene_sha1={SHA1}.arw",
        f"Bayer_.._ISO100_sha1={SHA1}.arw",
        f"Bayer_a/b_ISO100_sha1={SHA1}.arw",
        f".Bayer_scene_ISO100_sha1={SHA1}.arw.part",
        "",
    ],
)
def test_any_other_name_is_none(name: str):
    assert parse_name(name) is None


def test_the_sha1_in_the_name_of_a_sidecar_is_that_of_its_raw():
    raw, sidecar = parse_name(f"Bayer_s_ISO1_sha1={SHA1}.arw"), parse_name(f"Bayer_s_ISO1_sha1={SHA1}.arw.xmp")
    assert raw is not None
    assert sidecar is not None
    assert (raw.is_sidecar, sidecar.is_sidecar) == (False, True)
    assert raw.place.rpartition("/")[0] == sidecar.place.rpartition("/")[0]
