from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from library.models.blocks.reach import Geometry, probe_geometry, smallest_side


class Downscaling(nn.Module):
    """Halves the picture `levels` times, looks around, and brings it back to its size."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.factor = 2**levels
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.conv(nn.functional.max_pool2d(x, self.factor)), scale_factor=self.factor)


class GloballyPooling(nn.Module):
    """Channel attention, as in the original NAFNet."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (7, 1), (3, 4), (5, 3)])
def test_a_convolution_reaches_half_its_kernel(kernel: int, dilation: int):
    reach = kernel // 2 * dilation
    conv = nn.Conv2d(1, 1, kernel, padding=reach, dilation=dilation)
    assert probe_geometry(conv, 1, 1) == Geometry(reach, 1)


def test_the_reaches_of_layers_in_a_row_add_up():
    layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 5, padding=2))
    assert probe_geometry(layers, 1, 1) == Geometry(3, 1)


def test_a_kernel_that_is_not_square_counts_with_its_longer_side():
    assert probe_geometry(nn.Conv2d(1, 1, (1, 9), padding=(0, 4)), 1, 1).reach == 4
    assert probe_geometry(nn.Conv2d(1, 1, (9, 1), padding=(4, 0)), 1, 1).reach == 4


def test_a_weight_of_zero_still_counts_since_training_may_change_it():
    conv = nn.Conv2d(1, 1, 5, padding=2)
    nn.init.zeros_(conv.weight)
    assert probe_geometry(conv, 1, 1).reach == 2


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_pooling_sets_the_lattice_and_reaches_across_whole_cells(levels: int):
    cell = 2**levels
    # Of a cell's last pixel the neighbours' cells depend, up to the far end of the next one.
    assert probe_geometry(Downscaling(levels), 1, 1) == Geometry(2 * cell - 1, cell)


def test_reach_is_counted_in_input_pixels_when_the_output_is_larger():
    shuffled = nn.Sequential(nn.Conv2d(4, 12, 5, padding=2), nn.PixelShuffle(2))
    assert probe_geometry(shuffled, 4, 2) == Geometry(2, 1)


@pytest.mark.parametrize(
    ("geometry", "halo"), [((0, 1), 0), ((3, 1), 3), ((3, 2), 4), ((107, 16), 112), ((112, 16), 112)]
)
def test_the_halo_is_the_reach_rounded_up_to_the_lattice(geometry: tuple[int, int], halo: int):
    assert Geometry(*geometry).halo == halo


def test_a_network_with_a_global_operation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"GloballyPooling looks farther than 2048 pixels.* cannot be tiled"):
        probe_geometry(GloballyPooling(), 1, 1)


def test_a_network_of_another_scale_than_it_says_is_refused():
    with pytest.raises(ValueError, match="takes no square"):
        probe_geometry(nn.Conv2d(1, 1, 3, padding=1), 1, 2)


def test_asking_leaves_the_network_as_it_was():
    conv = nn.Conv2d(1, 1, 3, padding=1).train()
    before = {name: tensor.clone() for name, tensor in conv.state_dict().items()}
    probe_geometry(conv, 1, 1)
    assert conv.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())
    assert smallest_side(conv, 1, 1) == 1
