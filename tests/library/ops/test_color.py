from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from library.ops import color

with warnings.catch_warnings():  # of its imports from scipy and matplotlib
    warnings.simplefilter("ignore")
    colour = pytest.importorskip("colour")

# LibRaw's matrices of a Sony ILCE-7C and a Canon EOS 5D Mark IV.
XYZ_TO_SONY = np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]])
XYZ_TO_CANON = np.array([[0.6446, -0.0366, -0.0864], [-0.4436, 1.2204, 0.2513], [-0.0952, 0.2496, 0.6348]])
WHITE = torch.ones(3, 1, 1)
D65_WHITE_IMAGE = color.D65_WHITE_XYZ.float()[:, None, None]


def random_rgb(*shape: int) -> Tensor:
    """With values below 0 and above 1."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.25


def oracle(name: str) -> np.ndarray:
    space = colour.RGB_COLOURSPACES[name]
    return colour.normalised_primary_matrix(space.primaries, space.whitepoint)


@pytest.mark.parametrize(
    ("to_xyz", "from_xyz", "name"),
    [
        (color.LIN_REC2020_TO_XYZ, color.XYZ_TO_LIN_REC2020, "ITU-R BT.2020"),
        (color.LIN_SRGB_TO_XYZ, color.XYZ_TO_LIN_SRGB, "sRGB"),
    ],
)
def test_matrices_of_the_standard_spaces_are_those_of_colour_science(to_xyz: Tensor, from_xyz: Tensor, name: str):
    np.testing.assert_allclose(to_xyz.numpy(), oracle(name), atol=1e-12)
    np.testing.assert_allclose(from_xyz.numpy(), np.linalg.inv(oracle(name)), atol=1e-12)


NAMED = {
    "lin_rec2020": "ITU-R BT.2020",
    "lin_srgb": "sRGB",
    "lin_p3": "Display P3",
    "aces_ap0": "ACES2065-1",
    "aces_ap1": "ACEScg",
}


@pytest.mark.parametrize("target", NAMED)
@pytest.mark.parametrize("source", NAMED)
def test_between_any_two_named_spaces_is_as_colour_science_has_it(source: color.LinearSpace, target: color.LinearSpace):
    expected = np.linalg.inv(adapted(NAMED[target])) @ adapted(NAMED[source])
    np.testing.assert_allclose(color.space_matrix(source, target).numpy(), expected, atol=1e-9)


def adapted(name: str) -> np.ndarray:
    """RGB -> XYZ under D65, by colour-science's own Bradford transform."""
    white, d65 = (colour.xy_to_XYZ(xy) for xy in (colour.RGB_COLOURSPACES[name].whitepoint, color.D65_WHITE))
    return colour.adaptation.matrix_chromatic_adaptation_VonKries(white, d65, transform="Bradford") @ oracle(name)


@pytest.mark.parametrize("space", NAMED)
def test_every_named_space_has_white_at_one_and_comes_back_from_xyz(space: color.LinearSpace):
    torch.testing.assert_close(color.convert_space(WHITE, space, "xyz"), D65_WHITE_IMAGE, atol=2e-6, rtol=0)
    rgb = random_rgb(2, 3, 4, 5)
    there = color.convert_space(rgb, space, "aces_ap0")
    torch.testing.assert_close(color.convert_space(there, "aces_ap0", space), rgb, atol=1e-5, rtol=1e-5)


def test_a_space_that_nobody_knows_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="'adobe' is no linear colour space: there are xyz, lin_rec2020"):
        color.space_matrix("adobe", "xyz")  # pyright: ignore[reportArgumentType]


def test_the_srgb_matrix_rounds_to_the_one_in_the_standard():
    """IEC 61966-2-1 prints four decimals."""
    published = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    assert color.LIN_SRGB_TO_XYZ.numpy().round(4).tolist() == published


def test_between_rec2020_and_srgb_is_as_colour_science_has_it():
    direct = np.linalg.inv(oracle("sRGB")) @ oracle("ITU-R BT.2020")
    np.testing.assert_allclose(color.LIN_REC2020_TO_LIN_SRGB.numpy(), direct, atol=1e-12)
    np.testing.assert_allclose(color.LIN_SRGB_TO_LIN_REC2020.numpy(), np.linalg.inv(direct), atol=1e-12)


@pytest.mark.parametrize(
    "convert",
    [
        lambda white: color.xyz_to_lin_rec2020(D65_WHITE_IMAGE),
        lambda white: color.xyz_to_lin_srgb(D65_WHITE_IMAGE),
        color.lin_rec2020_to_lin_srgb,
        color.lin_srgb_to_lin_rec2020,
    ],
)
def test_white_is_white_in_every_space(convert: Callable[[Tensor], Tensor]):
    torch.testing.assert_close(convert(WHITE), WHITE)


def test_colours_survive_the_way_to_another_space_and_back():
    rgb = random_rgb(2, 3, 4, 5)
    torch.testing.assert_close(color.lin_rec2020_to_lin_srgb(color.lin_srgb_to_lin_rec2020(rgb)), rgb)
    camera = color.lin_srgb_to_camera_rgb(rgb, xyz_to_camera=XYZ_TO_SONY)
    xyz = color.camera_rgb_to_xyz(camera, xyz_to_camera=XYZ_TO_SONY)
    torch.testing.assert_close(color.xyz_to_lin_srgb(xyz), rgb, atol=1e-5, rtol=1e-5)


def test_camera_rgb_goes_to_rec2020_by_way_of_xyz():
    rgb = random_rgb(3, 4, 5)
    direct = color.camera_rgb_to_lin_rec2020(rgb, xyz_to_camera=XYZ_TO_SONY)
    stepwise = color.xyz_to_lin_rec2020(color.camera_rgb_to_xyz(rgb, xyz_to_camera=XYZ_TO_SONY))
    torch.testing.assert_close(direct, stepwise, atol=1e-5, rtol=1e-5)
    matrix = np.linalg.inv(oracle("ITU-R BT.2020")) @ np.linalg.inv(XYZ_TO_SONY)
    np.testing.assert_allclose(color.camera_to_lin_rec2020_matrix(XYZ_TO_SONY).numpy(), matrix, atol=1e-12)


def test_the_camera_matrix_is_inverted_as_it_is():
    """Rows are not normalised: twice the camera's sensitivity is half the XYZ."""
    np.testing.assert_allclose(color.camera_to_xyz(XYZ_TO_SONY).numpy() @ XYZ_TO_SONY, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(color.camera_to_xyz(2 * XYZ_TO_SONY), color.camera_to_xyz(XYZ_TO_SONY) / 2, atol=1e-14)


def test_balanced_white_is_d65_at_luminance_one():
    white = color.balanced_camera_to_xyz(XYZ_TO_SONY) @ torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(white, color.D65_WHITE_XYZ)
    assert white[1] == pytest.approx(1)


def test_balancing_a_camera_is_the_same_before_and_in_the_matrix():
    """White balance with the camera's own answer to D65, then the balanced matrix, is the plain matrix."""
    gains = torch.diag(1 / (torch.from_numpy(XYZ_TO_SONY) @ color.D65_WHITE_XYZ))
    torch.testing.assert_close(color.balanced_camera_to_xyz(XYZ_TO_SONY) @ gains, color.camera_to_xyz(XYZ_TO_SONY))


def test_the_balanced_matrix_does_not_know_the_scale_of_a_channel():
    scaled = np.diag([3.0, 0.5, 7.0]) @ XYZ_TO_SONY
    torch.testing.assert_close(color.balanced_camera_to_xyz(scaled), color.balanced_camera_to_xyz(XYZ_TO_SONY))


def test_every_rgb_camera_in_libraws_table_has_a_usable_matrix(shared_data: Path):
    cameras = json.loads((shared_data / "tables" / "camera_matrices_libraw.json").read_text())
    entries = [camera["xyz_to_cam_x10000"] for camera in cameras]
    matrices = np.array([entry for entry in entries if len(entry) == 9]).reshape(-1, 3, 3) / 10_000
    assert len(matrices) > 600
    white = color.balanced_camera_to_xyz(matrices) @ torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(white, color.D65_WHITE_XYZ.expand_as(white))
    back = color.camera_to_xyz(matrices) @ torch.from_numpy(matrices)
    torch.testing.assert_close(back, torch.eye(3, dtype=torch.float64).expand_as(back))


def test_each_image_of_a_batch_has_its_own_matrix():
    rgb = random_rgb(2, 3, 4, 5)
    both = color.camera_rgb_to_lin_rec2020(rgb, xyz_to_camera=np.stack([XYZ_TO_SONY, XYZ_TO_CANON]))
    for i, matrix in enumerate((XYZ_TO_SONY, XYZ_TO_CANON)):
        assert torch.equal(both[i], color.camera_rgb_to_lin_rec2020(rgb[i], xyz_to_camera=matrix))


def test_a_matrix_may_be_a_tensor_or_an_array_even_a_read_only_one():
    frozen = XYZ_TO_SONY.copy()
    frozen.flags.writeable = False
    expected = color.camera_to_xyz(XYZ_TO_SONY)
    assert expected.dtype == torch.float64
    for matrix in (frozen, torch.from_numpy(XYZ_TO_SONY)):
        assert torch.equal(color.camera_to_xyz(matrix), expected)
    torch.testing.assert_close(color.camera_to_xyz(torch.from_numpy(XYZ_TO_SONY).float()), expected, atol=0, rtol=1e-5)


def test_a_matrix_is_applied_to_columns_of_colour():
    rgb = random_rgb(2, 3, 4, 5)
    matrix = torch.from_numpy(XYZ_TO_SONY)
    expected = torch.einsum("ij,njhw->nihw", matrix, rgb.double()).float()
    torch.testing.assert_close(color.apply_matrix(rgb, matrix), expected)
    assert torch.equal(color.apply_matrix(rgb, torch.eye(3)), rgb)


def test_autocast_does_not_round_a_colour():
    rgb = random_rgb(3, 4, 5)
    expected = color.lin_srgb_to_lin_rec2020(rgb)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = color.lin_srgb_to_lin_rec2020(rgb)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, expected)


def test_a_gradient_passes_through_a_matrix():
    rgb = random_rgb(3, 2, 2).requires_grad_()
    color.apply_matrix(rgb, torch.from_numpy(XYZ_TO_SONY)).sum().backward()
    assert rgb.grad is not None
    np.testing.assert_allclose(rgb.grad[:, 0, 0].numpy(), XYZ_TO_SONY.sum(0), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.zeros((3, 3)), np.ones((3, 3)), np.full((3, 3), np.nan), np.diag([1.0, 1.0, 1e-9])])
def test_a_singular_matrix_is_refused_in_words(bad: np.ndarray):
    with pytest.raises(ValueError, match=r"singular or not finite.*no usable colour matrix"):
        color.camera_to_xyz(bad)
    with pytest.raises(ValueError, match="singular or not finite"):
        color.camera_rgb_to_lin_rec2020(WHITE, xyz_to_camera=np.stack([XYZ_TO_SONY, bad]))


def test_a_camera_that_does_not_see_white_is_refused():
    with pytest.raises(ValueError, match="no usable colour matrix"):
        color.balanced_camera_to_xyz(-XYZ_TO_SONY)
    with pytest.raises(ValueError, match="no usable colour matrix"):
        color.balanced_camera_to_xyz(np.zeros((3, 3)))


def test_a_packed_mosaic_is_not_taken_for_a_picture():
    with pytest.raises(ValueError, match="needs 3 planes"):
        color.apply_matrix(torch.zeros(4, 2, 2), torch.eye(3))
