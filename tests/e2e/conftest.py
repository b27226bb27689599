"""What several end-to-end tests start from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Forty different small pictures."""
    chance = random.Random(0)
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(40)]
    for path in paths:
        Image.frombytes("RGB", (24, 18), chance.randbytes(24 * 18 * 3)).save(path)
    return paths
