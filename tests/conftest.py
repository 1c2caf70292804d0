from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from library.bundle import write_bundle
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.models import nafnet
from tests.scenes import paint_scenes

# Ray's workers let all others go first (nice 15): beside two busy processes on two cores, two of them do not get as far
# as their first step within four minutes, where they need half a minute otherwise.
os.environ.setdefault("RAY_worker_niceness", "0")

# The same examples every time; how long one takes says more about the machine than about us.
settings.register_profile("stillgrain", deadline=None, derandomize=True)
settings.load_profile("stillgrain")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes first, since nothing takes longer."""
    items.sort(key=lambda item: _scope(item.path) != "ray")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """For `-n 2`: a file stays with one process, whose fixtures its tests share. All that may start Ray stays with one
    process too: several Rays that come and go side by side on one machine have taken each other down."""

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(config.rootpath / nodeid.partition("::")[0])

    return ByFile(config, log)


_WITHOUT_RAY = (
    "library/",
    "cluster/test_check",
    "cluster/test_jobqueue",
    "cluster/test_kuberay",
    "cluster/test_metrics",
    "cluster/test_queue_machine",
    "cluster/test_rayjob",
    "cluster/test_submit",
    "workloads/evaluations/",
    "workloads/sweeps/",
    "workloads/test_archive_page",
    "workloads/test_compress.py",
    "workloads/test_launch",
    "workloads/test_pairs_page",
    "workloads/test_progress",
    "workloads/test_rd_page",
    "workloads/test_report",
    "workloads/test_runs",
    "workloads/test_simulate",
    "test_command",
    "test_components",
    "test_configs",
    "test_journey",
    "test_layering",
    "test_readme",
)
"""How the paths of files begin whose tests never start Ray."""


def _scope(file: Path) -> str:
    path = file.relative_to(Path(__file__).parent).as_posix()
    return path if path.startswith(_WITHOUT_RAY) else "ray"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors here are small, and on a busy machine threads that wait for each other take a hundred times as long."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real raws, images with known noise and camera tables, which lie beside the project and are no part of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared test data, and {SHARED_DATA} does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures with edges and gradients, to train on."""
    return paint_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def raw_dng(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small noisy GRBG raw with odd sides, as a camera that was turned would have written it."""
    rows, columns = np.mgrid[:131, :153]
    mosaic = (
        512 + 6000 * (1 + np.sin(rows / 9) * np.cos(columns / 7)) + np.random.default_rng(0).normal(0, 60, rows.shape)
    )
    metadata = ImageMetadata(
        make="Stillgrain",
        model="Test",
        iso=800.0,
        orientation=6,
        xyz_to_camera=np.array([[0.7374, -0.2389, -0.0551], [-0.5435, 1.3162, 0.2519], [-0.1006, 0.1795, 0.6552]]),
        as_shot_white_balance=np.array([2.0, 1.0, 1.5]),
    )
    path = tmp_path_factory.mktemp("raw") / "photo.dng"
    write_cfa_dng(
        path,
        np.clip(mosaic, 0, 16383).astype(np.uint16),
        cfa="GRBG",
        black_level=np.full((2, 2), 512.0),
        white_level=16383,
        metadata=metadata,
    )
    return path


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NAFNet of width 4 whose weights are all random, so that every layer takes part in the result."""
    torch.manual_seed(0)
    model = nafnet.Config(width=4).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(folder, model, name="small", training={}, data_digest="none", metrics={"val/psnr": 20.0}, step=1)
    return folder
