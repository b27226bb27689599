"""Recipes of the papers' data sets: the numbers of the official configurations, one row each."""

from __future__ import annotations

import pytest

from perceptune.config import load_recipe, recipe_names

SMALL, LARGE = ("facebook/opt-2.7b", "epalm"), ("facebook/opt-6.7b", "epalm-pt-l")
# task, format; LM and method; samples a step; epochs; rate at the start, its peak and end; the soft prompt's; schedule
ROWS = {
    "vqa-v2": ("vqa-v2", "vl-t5", SMALL, 256, 8, (1e-5, 2e-5, 1e-6), 1e-5, "cosine"),
    "vqa-v2-pt-l": ("vqa-v2", "vl-t5", LARGE, 16, 35, (1e-4, 2e-4, 1e-5), 1e-3, "cosine"),
    "gqa": ("gqa", "vl-t5", SMALL, 256, 8, (1e-5, 2e-5, 1e-6), 1e-5, "cosine"),
    "gqa-pt-l": ("gqa", "vl-t5", LARGE, 64, 35, (1e-4, 2e-4, 1e-5), 1e-3, "cosine"),
    "coco-captions": ("coco-captions", None, SMALL, 64, 8, (2e-5, 2e-5, 2e-5), 2e-5, "constant"),
    "coco-captions-pt-l": ("coco-captions", None, LARGE, 16, 35, (2e-4, 2e-4, 2e-4), 2e-4, "constant"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_has_the_numbers_of_its_row(name: str) -> None:
    recipe = load_recipe(f"paper/{name}")
    task, form, (lm, method), batch, epochs, rates, prompt, schedule = ROWS[name]
    train = recipe.train
    assert recipe.task is not None
    assert (recipe.task.name, recipe.task.options().get("format")) == (task, form)
    assert (recipe.lm.id, recipe.method.name) == (lm, method)
    assert (train.batch_size * train.accumulate, train.epochs) == (batch, epochs)
    start = train.lr / 2 if train.warmup_lr is None else train.warmup_lr
    constant = train.schedule == "constant"
    assert ((train.lr,) * 3 if constant else (start, train.lr, train.min_lr)) == rates
    assert (train.prompt_lr, train.prompt_schedule, train.schedule) == (prompt, "constant", schedule)
    assert (train.warmup_steps, train.weight_decay, train.clip) == (400, 0.02, None)
    assert (recipe.decode.beams, recipe.decode.max_length, recipe.decode.sample) == (3, 30, False)
    assert recipe.text.supervise == "all"
    assert (recipe.text.separator, recipe.text.template) == (("</a>", "{prompt}?") if form else (None, ""))
    assert (recipe.method.options()["first"], recipe.method.options()["last"]) == (19, 30)
    image = recipe.encoders["image"]
    assert (image.views, image.resize, image.mean) == (epochs, "squash", (0.48145466, 0.4578275, 0.40821073))


def test_zero_shot_captions_are_judged_on_both_sets() -> None:
    for name in ("captions-vit", "captions-clip"):
        others = load_recipe(f"paper/{name}").eval.others
        assert {key: other.task.name for key, other in others.items()} == {"coco": "coco-captions", "nocaps": "nocaps"}
        assert others["coco"].split == "test"


def test_every_recipe_on_a_set_of_pictures_is_pinned() -> None:
    sets = {"vqa-v2", "gqa", "coco-captions"}
    found = {
        name.removeprefix("paper/") for name in recipe_names() if name.count("/") == 1 and name.startswith("paper/")
    }
    named = {name for name in found if (task := load_recipe(f"paper/{name}").task) and task.name in sets}
    assert named == set(ROWS)
