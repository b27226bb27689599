"""The paper's recipes on clips and sounds: the numbers of its tables and of the released configurations."""

from __future__ import annotations

import pytest

from perceptune.config import Recipe, load_recipe, recipe_names
from perceptune.evaluation import make_task
from perceptune.sections import TrainConfig

TIMESFORMER, VIT = "facebook/timesformer-base-finetuned-k600", "google/vit-base-patch16-224"
AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
QUESTION, CAPTION = "{prompt}?", ""
# recipe -> task, encoder, its frames (None = as published), samples a step, epochs, template
ROWS: dict[str, tuple[str, str, int | None, int, float, str]] = {
    "msrvtt-qa": ("msrvtt-qa", TIMESFORMER, None, 32, 26, QUESTION),
    "msvd-qa": ("msvd-qa", TIMESFORMER, None, 32, 26, QUESTION),
    "msrvtt-captions": ("msrvtt-captions", TIMESFORMER, 16, 64, 26, CAPTION),
    "audiocaps": ("audiocaps", AST, None, 32, 30, CAPTION),
    "table13/vit-average": ("msrvtt-captions", VIT, None, 64, 26, CAPTION),
    "table13/vit-average-16": ("msrvtt-captions", VIT, 16, 64, 26, CAPTION),
    "table13/timesformer": ("msrvtt-captions", TIMESFORMER, None, 64, 26, CAPTION),
    "table13/timesformer-16": ("msrvtt-captions", TIMESFORMER, 16, 64, 26, CAPTION),
}
ZERO_SHOT = {"zero-shot-video/msrvtt-qa": "msrvtt-qa", "zero-shot-video/msvd-qa": "msvd-qa"}
PICTURES = "zero-shot-video/pictures"


def require_the_papers_method(recipe: Recipe) -> None:
    """eP-ALM on OPT-2.7B, everything after the separator supervised, as in the main results."""
    assert recipe.lm.id == "facebook/opt-2.7b"
    assert recipe.method.name == "epalm"
    chosen = {"first": 19, "last": 30, "connector_std": None, "standardize": False}
    assert recipe.method.options() == chosen
    assert (recipe.text.supervise, recipe.text.target) == ("all", "{target}")
    assert recipe.text.separator == ("</a>" if recipe.text.template == QUESTION else None)


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_tables_4_6_and_13(name: str) -> None:
    task, encoder, frames, batch, epochs, template = ROWS[name]
    recipe = load_recipe(f"paper/{name}")
    require_the_papers_method(recipe)
    [(modality, config)] = recipe.encoders.items()
    assert modality == ("audio" if encoder == AST else "video")
    assert (config.id, config.frames) == (encoder, frames)
    assert (config.mean, config.std) == ((None, None) if encoder == AST else CLIP)
    assert (config.time_mask, config.frequency_mask) == (96, 24)
    assert recipe.train.batch_size * recipe.train.accumulate == batch
    assert (recipe.train.epochs, config.views) == (epochs, epochs), "frames and masks are drawn anew in each epoch"
    rates = ("lr", "warmup_lr", "min_lr", "prompt_lr", "warmup_steps", "weight_decay")
    assert all(getattr(recipe.train, key) == getattr(TrainConfig(), key) for key in rates)
    assert recipe.text.template == template
    assert recipe.decode.sample == name.startswith("table13/"), "ablations: multinomial"
    assert recipe.decode.beams == (1 if recipe.decode.sample else 3)
    assert recipe.task is not None
    assert recipe.task.name == task
    assert make_task(recipe).splits == ("train", "validation", "test")


def test_zero_shot_questions_about_clips_start_from_pictures() -> None:
    pictures = load_recipe(f"paper/{PICTURES}")
    require_the_papers_method(pictures)
    encoder = pictures.encoders["image"]
    assert (encoder.id, encoder.temporal) == (TIMESFORMER, "skip")
    train = pictures.train
    assert (train.epochs, train.batch_size * train.accumulate, train.warmup_lr) == (4, 256, 1e-4)
    assert pictures.task is not None
    assert pictures.task.name == "vqa-v2"
    for name, task in ZERO_SHOT.items():
        clips = load_recipe(f"paper/{name}")
        require_the_papers_method(clips)
        assert clips.text == pictures.text
        assert clips.train.steps == 0
        assert clips.init_from is not None
        assert (clips.init_from.rename, clips.init_from.may_differ) == ({"image": "video"}, ("encoders",))
        same = {"id", "mean", "std", "frames"}
        assert clips.encoders["video"].model_dump(include=same) == encoder.model_dump(include=same)
        assert clips.task is not None
        assert clips.task.name == task


def test_all_recipes_on_clips_and_sounds_are_pinned() -> None:
    prefixes = ("paper/table13/", "paper/zero-shot-video/")
    found = {name.removeprefix("paper/") for name in recipe_names() if name.startswith(prefixes)}
    assert found == {*(name for name in ROWS if name.startswith("table13/")), *ZERO_SHOT, PICTURES}
