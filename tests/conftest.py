from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real raws, images with known noise and camera tables, which lie beside the project and are no part of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared test data, and {SHARED_DATA} does not exist")
    return SHARED_DATA
