from __future__ import annotations

from pathlib import Path

import pytest
import torch

from library.bundle import Bundle, golden_inputs, load_bundle, write_bundle
from library.inference.engine import SMALLEST_TILE
from library.inference.tiled import run_tiled
from library.inference.verify import verify_tiling
from library.models import nafnet, unet
from library.models.blocks.image_model import ModelConfig
from library.ops.tiles import Tile


def bundle_of(config: ModelConfig, folder: Path) -> Bundle:
    """With random weights in every layer."""
    torch.manual_seed(0)
    model = config.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    write_bundle(folder, model, name="test", training={}, data_digest="none", metrics={}, step=1)
    return load_bundle(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of the network that people get who choose nothing."""
    return bundle_of(nafnet.Config(), tmp_path_factory.mktemp("bundle") / "b")


def test_the_default_network_is_exact(bundle: Bundle):
    report = verify_tiling(bundle)
    assert report.exact, str(report)
    assert len({check.tile for check in report.checks}) == len(report.checks) >= 3
    assert all(check.num_tiles >= 4 for check in report.checks)
    assert all(check.tile >= SMALLEST_TILE for check in report.checks)


def test_the_report_states_the_geometry_and_an_image_that_no_tile_divides(bundle: Bundle):
    report = verify_tiling(bundle)
    model = bundle.model
    assert (report.reach, report.halo, report.lattice) == (model.geometry.reach, model.halo, model.lattice)
    for check in report.checks:
        assert report.height % check.tile
        assert report.width % check.tile


def test_the_number_of_threads_does_not_change_a_bit(bundle: Bundle):
    x = golden_inputs(4, 4)[0].repeat(1, 3, 4)
    results = []
    before = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        results.append(tiled(bundle, x, 96))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def tiled(bundle: Bundle, x: torch.Tensor, tile: int) -> torch.Tensor:
    def window(t: Tile) -> torch.Tensor:
        return x[:, slice(*t.window_rows), slice(*t.window_columns)]

    height, width = x.shape[1:]
    scale = bundle.model.scale
    picture = torch.full((3, scale * height, scale * width), torch.nan)
    for patch in run_tiled(bundle.model, height, width, window, tile=tile):
        rows, columns = patch.pixels.shape[1:]
        picture[:, patch.top : patch.top + rows, patch.left : patch.left + columns] = patch.pixels
    return picture


def test_tiles_with_their_halo_see_all_there_is_to_see_and_with_less_do_not(tmp_path: Path):
    """In float64, where no kernel's rounding stands for or hides a pixel that was not seen."""
    bundle = bundle_of(unet.Config(funit=2), tmp_path / "b")
    model = bundle.model.double()
    x = golden_inputs(4, 16)[0].repeat(1, 3, 6).double()
    geometry = model.geometry
    with torch.no_grad():
        whole = model(x[None])[0].float()
    assert (tiled(bundle, x, 32) - whole).abs().max() < 1e-7
    model.__dict__["geometry"] = geometry._replace(reach=16)
    assert (tiled(bundle, x, 32) - whole).abs().max() > 1e-6


def test_bfloat16_stays_within_a_bound_and_the_report_says_how_far(bundle: Bundle):
    report = verify_tiling(bundle, precision="bf16")
    assert report.precision == "bf16"
    assert all(check.largest_difference < 0.05 for check in report.checks)
    assert "bf16, whole against tiles" in str(report)


def test_an_rgb_denoiser_can_be_verified_too(tmp_path: Path):
    report = verify_tiling(bundle_of(unet.Config(funit=8, in_channels=3, head="plain"), tmp_path / "b"))
    assert report.exact, str(report)
    assert (report.reach, report.halo, report.lattice) == (107, 112, 16)
