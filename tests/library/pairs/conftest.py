from __future__ import annotations

import pytest

from library.pairs.generate import Planted, generate


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Twelve small scenes as a tree: every camera, prefix and flaw. To be read only."""
    return generate(tmp_path_factory.mktemp("pairs") / "tree", scenes=12, width=256, height=192)
