"""What several end-to-end tests start from."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    import perceptune
    from perceptune.serving.runs import Runs
    from servers import Served


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Forty different small pictures."""
    chance = random.Random(0)
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{i}.png" for i in range(40)]
    for path in paths:
        Image.frombytes("RGB", (24, 18), chance.randbytes(24 * 18 * 3)).save(path)
    return paths


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is worth sharing; some modules train another one."""
    import runs as dwarf_runs

    return dwarf_runs.share_worthy(tmp_path_factory.mktemp("shared"), dwarfs)


@pytest.fixture(scope="module")
def attacked_runs(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A run that sees, hears and watches."""
    import perceptune
    import runs as dwarf_runs
    from perceptune.models.run_folder import save_run
    from perceptune.serving.limits import Limits
    from servers import load_runs

    place = tmp_path_factory.mktemp("attacked") / "one"
    encoders = {name: {"id": str(dwarfs / "encoder")} for name in ("image", "audio", "video")}
    method = {"name": "epalm", "n_levels": 2, "standardize": False}
    save_run(place, perceptune.build(dwarf_runs.recipe(dwarfs, encoders=encoders, method=method)))
    return load_runs([str(place)], Limits())


@pytest.fixture(scope="module")
def attacked(attacked_runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its server; `folder` is where its local media lie."""
    from perceptune.serving.limits import Limits
    from perceptune.serving.local import LocalFiles
    from servers import png, served

    folder = tmp_path_factory.mktemp("media")
    (folder / "picture.png").write_bytes(png())
    limits = Limits(image_pixels=1_000_000, audio_mb=5, tokens=48)
    origins = ("https://app.example",)
    with served(attacked_runs, limits, local=LocalFiles(folder), origins=origins) as running:
        running.folder = folder  # type: ignore[attr-defined]
        yield running


@pytest.fixture
def goes_on(attacked: Served) -> Iterator[None]:
    """After every attack a good request is answered as before, and none has failed on the server's side."""
    good = attacked.chat()
    yield
    assert attacked.chat()[1]["choices"] == good[1]["choices"]
    assert attacked.settles("buffered_bytes", 0)
    assert attacked.settles("requests_admitted", 0)
    failed = [line for line in attacked.text("GET", "/metrics")[1].splitlines() if 'status="5' in line]
    assert failed == []


@pytest.fixture
def other(dwarfs: Path, tmp_path: Path) -> Path:
    """Another file of the same pictures: fewer rows, other words, choices, and answers of three words or more."""
    folder = shutil.copytree(dwarfs / "data", tmp_path / "other")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()][:7]
    rows = [{**row, "prompt": "which?", "targets": [f"a {row['targets'][0]} picture", "one color"],
             "choices": ["red", "no", f"a {row['targets'][0]} picture"]} for row in rows]  # fmt: skip
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "other.jsonl"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[perceptune.Sample]:
    """The samples that models are asked to answer from now on."""
    from perceptune.models.base import AdaptedModel

    samples: list[perceptune.Sample] = []
    answer = AdaptedModel.answer

    def kept(model: AdaptedModel, given: Sequence[perceptune.Sample], **options: Any) -> list[str]:
        samples.extend(given)
        return answer(model, given, **options)

    monkeypatch.setattr(AdaptedModel, "answer", kept)
    return samples
