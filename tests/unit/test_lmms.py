"""The adapter for lmms-eval, on the suite's own base class where it is installed, else on the little it needs of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import perceptune
import support
from perceptune.data.media.source import open_image
from perceptune.errors import UserError
from perceptune.models.run_folder import save_run


@dataclass
class Result:
    text: Any


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str


class Base:
    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    try:
        importlib.import_module("lmms_eval.api.model")
    except ImportError:
        names = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {}, "lmms_eval.api.model": {"lmms": Base},
                 "lmms_eval.api.instance": {"GenerationResult": Result},
                 "lmms_eval.models.registry_v2": {"ModelManifest": Manifest}}  # fmt: skip
        for name, contents in names.items():
            module = ModuleType(name)
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "perceptune.evaluation.lmms_eval", raising=False)
    yield importlib.import_module("perceptune.evaluation.lmms_eval")
    sys.modules.pop("perceptune.evaluation.lmms_eval", None)


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


@pytest.fixture
def asked(dwarfs: Path, tmp_path: Path, adapter: Any) -> Any:
    """The adapter on an untrained run, with a task of three documents."""
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", dwarfs / "data/train.jsonl")
    save_run(tmp_path / "run", perceptune.build(given))
    model = adapter.Perceptune(run=str(tmp_path / "run"), batch_size="2", device="cpu")
    files = [dwarfs / f"data/train{i}.png" for i in range(3)]
    model.task_dict = {"colors": {"test": [{"image": opened(file), "answer": "red"} for file in files]}}
    return SimpleNamespace(model=model, files=files)


def request(row: int, second: Any, text: str = "<image>\ncolor?", visual: Any = lambda doc: [doc["image"]]) -> Any:
    return SimpleNamespace(args=(text, second, visual, row, "colors", "test"))


def test_answers_are_the_runs_own(asked: Any, adapter: Any) -> None:
    settings = [{"max_new_tokens": 6, "temperature": 0}, {"max_new_tokens": 2, "num_beams": 3, "until": ["\n\n"]}]
    requests = [request(row, settings[row % 2]) for row in range(3)]
    answers = asked.model.generate_until(requests)
    run = asked.model.model
    samples = [perceptune.Sample("x", {"image": file}, "color?") for file in asked.files]
    own, short = run.answer(samples), run.answer(samples, decoding=perceptune.types.Decoding(2, beams=3))
    assert answers == [own[0].strip(), short[1].strip(), own[2].strip()]
    assert adapter._cut("a red one\n\nand more", ["\n\n"]) == "a red one"
    assert adapter.manifest().simple_class_path == "perceptune.evaluation.lmms_eval.Perceptune"


def test_choices_are_losses(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is generated to know whether a choice is the likeliest continuation."""
    monkeypatch.setattr(asked.model.model, "answer", lambda *_, **__: pytest.fail("an answer was generated"))
    requests = [request(row, choice) for row in range(3) for choice in (" red", lambda doc: doc["answer"], " blue")]
    found = [one.text for one in asked.model.loglikelihood(requests)]
    run = asked.model.model
    for row, file in enumerate(asked.files):
        [values] = run.rank([perceptune.Sample("x", {"image": file}, "color?")], [["red", "blue"]])
        losses = [loss for loss, _ in found[3 * row : 3 * row + 3]]
        assert losses == pytest.approx([-values[0], -values[0], -values[1]], abs=1e-5)
        scored = run.loglikelihood([perceptune.Sample("x", {"image": file}, "color?")], [["red", "blue"]])
        greedy = [is_greedy for _, is_greedy in found[3 * row : 3 * row + 3]]
        assert greedy == [scored[0][0][1], scored[0][0][1], scored[0][1][1]]


def test_what_a_run_cannot_do_is_said(asked: Any, adapter: Any) -> None:
    with pytest.raises(UserError, match="name the run folder"):
        adapter.Perceptune()
    with pytest.raises(UserError, match="unknown `pretrained`"):
        adapter.Perceptune(run="x", pretrained="y")
    with pytest.raises(
        UserError, match=r"`colors, test 0` has 2 media of modality image, .*`encoders\.image\.max_media: 1`"
    ):
        asked.model.generate_until([request(0, {}, visual=lambda doc: [doc["image"]] * 2)])
    with pytest.raises(UserError, match="int is not an image"):
        asked.model.generate_until([request(0, {}, visual=lambda doc: [3])])
    with pytest.raises(UserError, match="single questions"):
        asked.model.generate_until_multi_round([])


def test_several_images_stand_at_their_tags(asked: Any) -> None:
    def sample(text: str, count: int) -> perceptune.Sample:
        given: perceptune.Sample = asked.model._sample(request(0, {}, text, lambda doc: [doc["image"]] * count).args)
        return given

    pair = sample("is <image>\nredder than <image>?", 2)
    assert len(pair.list_media("image")) == 2
    assert (pair.prompt, [mark.at for mark in pair.marks]) == ("is redder than ?", [3, 15])
    for text, count in (("<image>which?", 2), ("<image>which?", 1), ("which?<image><image>", 1)):
        assert (sample(text, count).prompt, sample(text, count).marks) == ("which?", ())


def test_media_of_the_suite_are_seen_as_files_are(adapter: Any, tmp_path: Path) -> None:
    grey = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    modality, data = adapter._medium(Image.fromarray(grey), "x")
    assert modality == "image"
    np.testing.assert_allclose(np.asarray(open_image(data))[..., 0], grey // 16, atol=1)
    for name, among, expected in (
        ("a.TIF", ["image"], "image"), ("a.gif", ["image", "audio"], "image"), ("a.gif", ["video"], "video"),
    ):  # fmt: skip
        assert adapter._medium(tmp_path / name, "x", among) == (expected, tmp_path / name)
