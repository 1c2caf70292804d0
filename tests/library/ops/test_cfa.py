from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from library.ops.cfa import (
    BAYER_PHASES,
    CFA_PHASES,
    XTRANS_PHASES,
    cfa_period,
    cfa_tile,
    crop_from_rggb,
    crop_to_phase,
    crop_to_rggb,
    mirror_pad,
    pack_cfa,
    pad_mosaic,
    pad_to_rggb,
    rggb_offset,
    sample_cfa,
    shift_cfa,
    unpack_cfa,
)

phases = pytest.mark.parametrize("cfa", BAYER_PHASES)
sizes = pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 8), (6, 9), (7, 9), (2, 2), (3, 2), (2, 3)])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint16, torch.int32, torch.uint8])


def color_labels(height: int, width: int, cfa: str) -> Tensor:
    """A mosaic whose every photosite says which colour it measures: 0 red, 1 green, 2 blue."""
    tile = torch.tensor(["RGB".index(letter) for letter in cfa]).reshape((2, 2) if len(cfa) == 4 else (6, 6))
    return tile.repeat(height, width)[:height, :width]


def numbered(height: int, width: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.arange(height * width).reshape(height, width).to(dtype)


def assert_is_rggb(labels: Tensor) -> None:
    assert torch.equal(labels, color_labels(*labels.shape, cfa="RGGB"))


@phases
def test_the_offset_is_where_the_first_red_photosite_lies(cfa: str):
    labels = color_labels(2, 2, cfa)
    assert labels[rggb_offset(cfa)] == 0


@pytest.mark.parametrize("cfa", ["", "rggb", "RGBG", "RGGBRGGB", "GGRGGBGGBGGRBRGRBGGGBGGRGGRGGBRBGBRG"])
def test_a_cfa_that_is_not_bayer_is_refused_by_name(cfa: str):
    with pytest.raises(ValueError, match="no Bayer phase: expected one of RGGB, GRBG, GBRG, BGGR"):
        rggb_offset(cfa)


@phases
@sizes
def test_a_padded_mosaic_is_rggb_of_even_size_and_at_most_two_lines_larger(cfa: str, height: int, width: int):
    padded = pad_to_rggb(color_labels(height, width, cfa), cfa)
    assert_is_rggb(padded)
    for new, old in zip(padded.shape, (height, width), strict=True):
        assert new % 2 == 0
        assert 0 <= new - old <= 2


@phases
@sizes
def test_padding_loses_no_photosite_and_cropping_gives_the_mosaic_back(cfa: str, height: int, width: int):
    mosaic = numbered(height, width)
    assert torch.equal(crop_from_rggb(pad_to_rggb(mosaic, cfa), cfa, height=height, width=width), mosaic)


@phases
@sizes
def test_a_mosaic_cropped_to_rggb_holds_only_its_own_photosites_at_even_size(cfa: str, height: int, width: int):
    dy, dx = rggb_offset(cfa)
    assert_is_rggb(crop_to_rggb(color_labels(height, width, cfa), cfa))
    mosaic = numbered(height, width)
    cropped = crop_to_rggb(mosaic, cfa)
    new_height, new_width = cropped.shape
    assert torch.equal(cropped, mosaic[dy : dy + new_height, dx : dx + new_width])
    for new, old in zip(cropped.shape, (height, width), strict=True):
        assert new % 2 == 0
        assert 0 <= old - new <= 2


def test_cropping_drops_one_line_at_both_ends_of_an_even_mosaic_where_the_phase_differs():
    mosaic = numbered(6, 8)
    assert torch.equal(crop_to_rggb(mosaic, "GBRG"), mosaic[1:-1])
    assert torch.equal(crop_to_rggb(mosaic, "GRBG"), mosaic[:, 1:-1])
    assert torch.equal(crop_to_rggb(mosaic, "BGGR"), mosaic[1:-1, 1:-1])
    assert torch.equal(crop_to_rggb(mosaic, "RGGB"), mosaic)


def test_padding_mirrors_without_repeating_the_edge():
    mosaic = numbered(4, 5)
    padded = pad_to_rggb(mosaic, "BGGR")  # one line before both; after, only the rows are odd
    assert torch.equal(padded[1:-1, 1:], mosaic)
    assert torch.equal(padded[0, 1:], mosaic[1])
    assert torch.equal(padded[-1, 1:], mosaic[-2])
    assert torch.equal(padded[1:-1, 0], mosaic[:, 1])


@dtypes
def test_every_step_keeps_the_dtype_of_the_mosaic_and_takes_a_batch(dtype: torch.dtype):
    mosaic = torch.stack([numbered(5, 7, dtype), numbered(5, 7, dtype)]).unsqueeze(0)
    padded = pad_to_rggb(mosaic, "GBRG")
    packed = pack_cfa(padded)
    assert packed.shape == (1, 2, 4, 3, 4)
    assert {padded.dtype, packed.dtype, unpack_cfa(packed).dtype} == {dtype}
    restored = crop_from_rggb(unpack_cfa(packed), "GBRG", height=5, width=7)
    assert torch.equal(restored, mosaic)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 9), st.integers(0, 9))
def test_a_mirrored_line_keeps_its_parity_however_far_it_is_padded(length: int, before: int, after: int):
    padded = mirror_pad(torch.arange(length), 0, before, after)
    assert torch.equal(padded[before : before + length], torch.arange(length))
    assert torch.equal(padded % 2, torch.arange(-before, length + after) % 2)
    assert ((padded[1:] - padded[:-1]).abs() == 1).all()


def test_mirroring_agrees_with_torch_where_torch_can():
    image = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(0))
    ours = mirror_pad(mirror_pad(image, -2, 3, 2), -1, 1, 4)
    assert torch.equal(ours, F.pad(image, (1, 4, 3, 2), mode="reflect"))


def test_a_single_line_cannot_be_mirrored_and_says_so():
    with pytest.raises(ValueError, match="fewer than 2 lines"):
        pad_to_rggb(torch.zeros(1, 4), "RGGB")


@phases
def test_a_full_resolution_picture_is_cropped_like_its_mosaic(cfa: str):
    mosaic = numbered(5, 6)
    picture = pad_to_rggb(mosaic, cfa).expand(2, 3, -1, -1)
    cropped = crop_from_rggb(picture, cfa, height=5, width=6)
    assert torch.equal(cropped, mosaic.expand(2, 3, -1, -1))


def test_cropping_refuses_an_image_that_is_not_of_the_padded_size():
    with pytest.raises(ValueError, match=r"image is \(3, 4\).*padded to RGGB is \(6, 8\)"):
        crop_from_rggb(torch.zeros(4, 3, 4), "GBRG", height=5, width=7)


@dtypes
def test_packing_a_mosaic_and_unpacking_it_gives_it_back(dtype: torch.dtype):
    mosaic = numbered(4, 6, dtype)
    packed = pack_cfa(mosaic)
    assert torch.equal(unpack_cfa(packed), mosaic)
    assert torch.equal(pack_cfa(unpack_cfa(packed)), packed)


def test_packed_planes_are_red_green_of_red_rows_green_of_blue_rows_blue():
    mosaic = torch.tensor([[1, 2, 5, 6], [3, 4, 7, 8]])
    assert pack_cfa(mosaic).tolist() == [[[1, 5]], [[2, 6]], [[3, 7]], [[4, 8]]]


def test_packing_agrees_with_pixel_unshuffle_and_unpacking_with_pixel_shuffle():
    mosaic = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    packed = F.pixel_unshuffle(mosaic.unsqueeze(1), 2)
    assert torch.equal(pack_cfa(mosaic), packed)
    assert torch.equal(unpack_cfa(packed), F.pixel_shuffle(packed, 2).squeeze(1))


def test_shifting_a_mosaic_by_a_tile_shifts_its_planes_by_a_pixel():
    mosaic = numbered(8, 10)
    assert torch.equal(pack_cfa(mosaic[2:, 4:]), pack_cfa(mosaic)[:, 1:, 2:])


@pytest.mark.parametrize("size", [(3, 4), (4, 3), (3, 3)])
def test_packing_an_odd_size_is_refused_with_the_remedy(size: tuple[int, int]):
    with pytest.raises(ValueError, match="use pad_to_rggb or crop_to_rggb"):
        pack_cfa(torch.zeros(size))


def test_unpacking_needs_four_planes():
    with pytest.raises(ValueError, match="has 3 planes"):
        unpack_cfa(torch.zeros(3, 2, 2))


@phases
@sizes
def test_a_sampled_picture_holds_at_each_site_the_colour_of_the_filter(cfa: str, height: int, width: int):
    labels = torch.arange(3)[:, None, None].expand(3, height, width)
    assert torch.equal(sample_cfa(labels, cfa), color_labels(height, width, cfa))
    picture = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = picture.gather(1, color_labels(height, width, cfa).expand(2, 1, height, width)).squeeze(1)
    assert torch.equal(sample_cfa(picture, cfa), expected)


def test_sampling_leaves_the_picture_as_it_was():
    picture = torch.ones(3, 4, 4)
    sample_cfa(picture * 1, "BGGR").zero_()
    mosaic = sample_cfa(picture, "BGGR")
    mosaic.zero_()
    assert (picture == 1).all()


# --- Bayer and X-Trans ------------------------------------------------------------------------------------------------

every_phase = pytest.mark.parametrize("cfa", CFA_PHASES)


def test_x_trans_has_eighteen_phases_each_with_twenty_greens_and_all_colours_in_every_line():
    assert len(set(XTRANS_PHASES)) == 18
    for cfa in XTRANS_PHASES:
        assert {letter: cfa.count(letter) for letter in "RGB"} == {"R": 8, "G": 20, "B": 8}
        tile = cfa_tile(cfa)
        for line in (*tile, *tile.T):
            assert set(line.tolist()) == {0, 1, 2}


@every_phase
def test_a_turned_or_mirrored_tile_is_another_phase_of_the_same_cfa(cfa: str):
    phases = BAYER_PHASES if len(cfa) == 4 else XTRANS_PHASES
    tile = cfa_tile(cfa)
    for turned in (tile.flip(0), tile.flip(1), tile.T, tile.T.flip(0)):
        assert "".join("RGB"[color] for color in turned.flatten().tolist()) in phases


@every_phase
def test_the_letters_of_a_shifted_mosaic_are_those_of_its_photosites(cfa: str):
    labels = color_labels(13, 17, cfa)
    for dy, dx in ((0, 0), (1, 0), (0, 5), (3, 4), (7, 8)):
        rest = labels[dy:, dx:]
        assert torch.equal(rest, color_labels(*rest.shape, cfa=shift_cfa(cfa, dy, dx)))
        assert shift_cfa(shift_cfa(cfa, dy, dx), -dy, -dx) == cfa


@every_phase
def test_a_padded_mosaic_continues_its_cfa_and_keeps_its_photosites(cfa: str):
    for height, width in ((6, 6), (7, 8), (11, 9)):
        numbers = numbered(height, width)
        padded = pad_mosaic(numbers, cfa, top=5, bottom=9, left=3, right=14)
        assert torch.equal(padded[5 : 5 + height, 3 : 3 + width], numbers)
        labels = color_labels(height, width, cfa).flatten()[padded.long()]
        assert torch.equal(labels, color_labels(height + 14, width + 17, shift_cfa(cfa, -5, -3)))


@pytest.mark.parametrize("cfa", BAYER_PHASES)
def test_a_bayer_mosaic_is_padded_by_mirroring_its_edges(cfa: str):
    mosaic = numbered(5, 6)
    expected = mirror_pad(mirror_pad(mosaic, -2, 3, 2), -1, 1, 4)
    assert torch.equal(pad_mosaic(mosaic, cfa, top=3, bottom=2, left=1, right=4), expected)


def test_a_mosaic_smaller_than_a_tile_cannot_be_padded_and_says_so():
    with pytest.raises(ValueError, match=r"\(5, 8\), smaller than a tile of its CFA, 6 x 6"):
        pad_mosaic(numbered(5, 8), XTRANS_PHASES[0], top=1)


@every_phase
def test_a_crop_to_a_phase_holds_whole_tiles_of_it_and_drops_as_little_as_it_can(cfa: str):
    period = cfa_period(cfa)
    mosaic = numbered(25, 26)
    for phase in BAYER_PHASES if period == 2 else XTRANS_PHASES:
        cropped = crop_to_phase(mosaic, cfa, phase)
        dy, dx = divmod(int(cropped[0, 0]), 26)
        height, width = cropped.shape
        assert shift_cfa(cfa, dy, dx) == phase
        assert torch.equal(cropped, mosaic[dy : dy + height, dx : dx + width])
        assert height % period == width % period == 0
        assert 25 - period < dy + height <= 25
        assert dy + dx <= (2 if period == 2 else 7)
    with pytest.raises(ValueError, match="give a phase of the same CFA"):
        crop_to_phase(mosaic, cfa, XTRANS_PHASES[0] if period == 2 else "RGGB")


@pytest.mark.parametrize("cfa", XTRANS_PHASES)
def test_an_x_trans_sample_is_the_colour_of_its_filter(cfa: str):
    picture = torch.rand(2, 3, 8, 13, generator=torch.Generator().manual_seed(0))
    expected = picture.gather(1, color_labels(8, 13, cfa).expand(2, 1, 8, 13)).squeeze(1)
    assert torch.equal(sample_cfa(picture, cfa), expected)


def test_x_trans_has_no_first_red_photosite_to_pack_from_and_says_what_takes_it():
    with pytest.raises(ValueError, match="models of CFA planes or of pictures"):
        pad_to_rggb(numbered(8, 8), XTRANS_PHASES[0])
