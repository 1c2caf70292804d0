from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from torch import Tensor, nn

from library.inference import tile_size
from library.inference.tile_size import activation_bytes, available_memory, fitting_tile, resident_memory
from library.models import mobile, nafnet
from library.models.blocks.image_model import ImageModel
from library.ops.tiles import plan_tiles


class Chain(ImageModel):
    """Planes of 4, 8, 16 and 3 channels; what was used is let go."""

    in_channels, scale, lattice = 4, 1, 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((4, 8), (8, 16), (16, 3))])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Skipping(Chain):
    """What the first layer made is held to the end."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0](x)
        return self.layers[2](self.layers[1](first)) + first[:, :3]


def test_a_networks_worst_moment_is_that_of_its_widest_pair_of_layers() -> None:
    """The input, which the caller holds, and 8 channels beside 16, in float32."""
    assert activation_bytes(Chain()) == 4 * (4 + 8 + 16)


def test_what_a_network_holds_for_later_counts() -> None:
    """8 channels of the first layer while 16 become 3; then 3 beside the view of 3 and their sum."""
    assert activation_bytes(Skipping()) == 4 * (4 + 8 + 16 + 3)


@pytest.mark.parametrize("config", [nafnet.Config(), mobile.Config()])
def test_wider_networks_need_more_and_half_precision_less(config: nafnet.Config | mobile.Config) -> None:
    model = config.build().eval()
    wide = config.model_copy(update={"width": 2 * config.width}).build().eval()
    assert 1.5 < activation_bytes(wide) / activation_bytes(model) < 2
    assert activation_bytes(model, half=True) < activation_bytes(model)


def work(height: int, width: int, tile: int, halo: int, lattice: int) -> tuple[int, int]:
    """Pixels of the largest window, and of all."""
    windows = [
        (t.window_rows.stop - t.window_rows.start) * (t.window_columns.stop - t.window_columns.start)
        for t in plan_tiles(height, width, tile=tile, halo=halo, lattice=lattice)
    ]
    return max(windows), sum(windows)


@pytest.mark.parametrize("room", [2e6, 1e7, 5e7, 1e9])
@pytest.mark.parametrize(("height", "width"), [(320, 480), (672, 1008), (96, 2000), (16, 16)])
def test_a_tile_fits_and_no_other_that_fits_needs_less_work(height: int, width: int, room: float) -> None:
    halo, lattice, smallest, density = 112, 16, 96, 50.0
    tile = fitting_tile(
        height, width, halo=halo, lattice=lattice, smallest=smallest, bytes_per_pixel=density, room=int(room)
    )
    assert tile % lattice == 0
    window, total = work(height, width, tile, halo, lattice)
    if tile > smallest:
        assert density * window <= room
    if tile >= max(height, width):
        assert window == height * width
    for other in range(smallest, max(height, width) + lattice, lattice):
        window, total_of_other = work(height, width, other, halo, lattice)
        if 2.25 * density * window <= room:
            assert total <= total_of_other


def test_memory_that_is_taken_is_seen() -> None:
    before = resident_memory()
    assert available_memory() > 0
    with mmap.mmap(-1, 2**26) as held:  # not of the heap, which may have kept as much
        held[:] = b"x" * 2**26
        assert resident_memory() - before > 2**25


def group(root: Path, name: str, files: dict[str, str]) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (root / name / file).write_text(text + "\n")


def test_a_containers_limit_counts_and_so_do_those_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control groups of version 2, whose innermost says nothing."""
    root, membership = tmp_path / "fs", tmp_path / "cgroup"
    group(root, "pod/app", {"memory.max": "max", "memory.current": "5"})
    group(root, "pod", {"memory.max": "3000", "memory.current": "1000", "memory.stat": "anon 7\ninactive_file 400"})
    membership.write_text("0::/pod/app\n")
    assert tile_size.cgroup_room(root, membership) == [3000 - (1000 - 400)]
    membership.write_text("0::/of/the/host\n")
    group(root, "", {"memory.max": "900", "memory.current": "100"})
    assert tile_size.cgroup_room(root, membership) == [800]
    monkeypatch.setattr(tile_size, "cgroup_room", lambda: [800])
    assert available_memory() == 800


def test_limits_of_the_older_control_groups_count_too(tmp_path: Path) -> None:
    root, membership = tmp_path / "fs", tmp_path / "cgroup"
    membership.write_text("5:devices:/\n4:cpu,memory:/job\n0::/\n")
    unlimited = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "10"}
    group(root / "memory", "", unlimited)
    assert tile_size.cgroup_room(root, membership) == []
    group(root / "memory", "job", {"memory.limit_in_bytes": "5000", "memory.usage_in_bytes": "2000"})
    assert tile_size.cgroup_room(root, membership) == [3000]
