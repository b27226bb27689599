"""Shared dwarfs: built once per session, so a test pays for what it tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from web import MediaWeb

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for a hub must fail at once, not wait


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="whole products of tests, methods and families, not pairs")
    parser.addoption("--fast", action="store_true", help="without the tests in tests/slow.txt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("fast"):
        return
    slow = set((Path(__file__).with_name("slow.txt")).read_text(encoding="utf-8").split())
    left_out = [item for item in items if item.nodeid.partition("[")[0] in slow]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.nodeid.partition("[")[0] not in slow]


@pytest.fixture(autouse=True)
def _steady() -> Iterator[None]:
    """Each test starts from the same random state."""
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[MediaWeb]:
    """What media at addresses in rows are fetched from."""
    made = MediaWeb()
    monkeypatch.setattr("perceptune.data.media.remote_media.REMOTE", made.remote())
    yield made
    made.close()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compute stays out of the user's cache; the default models in it are used."""
    from perceptune.utils.downloads import cache_dir

    folder = tmp_path_factory.mktemp("cache")
    models = cache_dir() / "assets"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "assets").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERCEPTUNE_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def dwarfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lm` (Llama), `opt`, `encoder` (DINOv2), `vit` and `data/train.jsonl`."""
    import support

    folder = tmp_path_factory.mktemp("dwarfs")
    support.save_lm(folder / "lm", "llama")
    support.save_lm(folder / "opt", "opt")
    support.save_encoder(folder / "encoder", "dinov2")
    support.save_encoder(folder / "vit", "vit")
    support.save_data(folder / "data")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the module's `trained`, which a test may damage."""
    return shutil.copytree(trained, tmp_path / "run")
