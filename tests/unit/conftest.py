"""What several unit tests start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from perceptune.utils import downloads
from perceptune.utils.assets import ASSETS
from shelf import Shelf
from tars import REMOTE


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache folder, and a remote place, that begin empty."""
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(tmp_path / "cache"))
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def offline_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library `datasets` without a hub, and with a cache of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else REMOTE


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A cache of its own."""
    made = Shelf(wheel=tmp_path / "tiny_wheel-1.2-py3-none-any.whl", cache=tmp_path / "cache")
    monkeypatch.setenv("PERCEPTUNE_CACHE", str(made.cache))
    for name in reversed([*ASSETS]):  # undone in reverse, so that their order comes back
        monkeypatch.delitem(ASSETS, name)
    monkeypatch.setitem(ASSETS, "tiny", None)  # removed in the end
    monkeypatch.setattr(downloads, "_run_pip", made.run_pip)
    made.set()
    return made


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per case, all weights random and none at its initial zero or one."""
    import transformers
    from torch import nn

    from encoder_cases import CASES, SQUASHED, STAGED_CASES, VIDEO_CASES

    root = tmp_path_factory.mktemp("checkpoints")
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    for name, (_, saved, config) in {**CASES, **VIDEO_CASES, **STAGED_CASES}.items():
        model = getattr(transformers, saved)(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(root / name)
        (root / name / "preprocessor_config.json").write_text(json.dumps(SQUASHED))
    return root


@pytest.fixture
def copy(checkpoints: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a checkpoint that a test may damage."""
    return lambda name: Path(shutil.copytree(checkpoints / name, tmp_path / "copy"))


@pytest.fixture(scope="session")
def ears(tmp_path_factory: pytest.TempPathFactory, dwarfs: Path) -> Path:
    """A folder per case of `sounds`, `efficientat.pt` and `pictures`, an image encoder."""
    from sounds import CASES, save_mobilenet, save_sound_encoder

    root = tmp_path_factory.mktemp("ears")
    for name in CASES:
        save_sound_encoder(root / name, name)
    save_mobilenet(root / "efficientat.pt")
    shutil.copytree(dwarfs / "encoder", root / "pictures")
    return root
