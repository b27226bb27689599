"""Ask a run about an image, an audio file or a video.

Examples:
  perceptune answer runs/mine --image photo.jpg "what color is this?"
  perceptune answer runs/mine --image photo.jpg "what color is this?" --choices red,green,blue --logprobs
  perceptune answer runs/pairs --image one.jpg --image two.jpg "what changed from <image> to <image>?"
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from perceptune.cli.parsing import Namespace, Parser, any_text
from perceptune.errors import UserError

if TYPE_CHECKING:
    from perceptune.config.recipe import Recipe
    from perceptune.types import Media

PREFIXES = ("decode.", "eval.", "lm.", "encoders.", "cache.")  # a question may contain `=` as well


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    told = "question (default: the run's `task.prompt`; none is needed if its template has no {prompt})"
    parser.add_argument("question", nargs="?", type=any_text, help=told)
    parser.add_overrides("decode.* keys, such as decode.beams=3", beside="question", prefixes=PREFIXES)
    for kind in ("image", "audio", "video"):
        told = f"{kind} file; may be repeated, and `<{kind}>` in the question then marks the place of each"
        parser.add_argument(f"--{kind}", metavar="FILE", action="append", help=told)
    told = "answer with the most likely of these choices; without a value, of the run's own (`task.choices`)"
    parser.add_argument("--choices", nargs="?", const=True, metavar="A,B,C", help=told)
    parser.add_ensemble()
    parser.add_argument("--logprobs", action="store_true", help="print log-probabilities of the tokens or choices, too")
    parser.add_json()
    parser.add_trust()


def run(options: Namespace) -> None:
    """Print the answer."""
    from perceptune.data.choices import choices_of
    from perceptune.data.conversations import as_media, mark_media
    from perceptune.data.storage import local_path
    from perceptune.models.ensemble import load_answering
    from perceptune.models.run_folder import cleaning_of
    from perceptune.types import Sample

    media: dict[str, Media] = {
        kind: as_media([local_path(file, f"--{kind}") for file in files])
        for kind in ("image", "audio", "video")
        if (files := getattr(options, kind))
    }
    model = load_answering(options.run, options.ensemble, trust=options.trust, overrides=options.overrides)
    question, marks = mark_media(_question(options.question, model.recipe), media)
    sample = Sample("question", media, question, marks=marks)
    model.check_modalities([sample])
    if texts := _texts(options.choices, model.recipe):
        choices = choices_of(Sample("--choices", {}, "", meta={"choices": texts}))
        values = model.rank([sample], [choices], normalize=model.recipe.eval.rank_normalize)[0]
        ranked = dict(sorted(zip(choices, values, strict=True), key=lambda pair: -pair[1]))
        found: dict[str, Any] = {"answer": next(iter(ranked)), "logprobs": ranked}
        lines = [f"{value:9.4f}  {choice}" for choice, value in ranked.items()] if options.logprobs else []
    else:
        raw = model.answer([sample])[0]
        tokens = model.token_logprobs([sample])[0] if options.logprobs else []
        given = {"tokens": tokens} if options.logprobs else {}
        found = {"answer": cleaning_of(model)(raw), "raw": raw, **given}
        lines = [f"{value:9.4f}  {token!r}" for token, value in tokens]
    print(json.dumps(found) if options.json else "\n".join([found["answer"], *lines]))


def _question(given: str | None, recipe: Recipe) -> str:
    """Return the question of a command line, else that of the run's task."""
    own = None if recipe.task is None else recipe.task.options().get("prompt")
    if not given and own is None and "{prompt}" in recipe.text.template:
        raise UserError("this run wants a question: give one after the run's name")
    return given or own or ""


def _texts(given: str | Literal[True] | None, recipe: Recipe) -> list[str]:
    """Return the choices of a command line, or those that the run was trained on; empty to generate the answer."""
    from perceptune.data.choices import stored_choices

    if isinstance(given, str):
        return [text.strip() for text in given.split(",")]
    own = stored_choices(recipe)
    if given and not own:
        raise UserError("--choices: this run has no `task.choices` in its recipe; name some, such as --choices cat,dog")
    return own if given or recipe.eval.rank == "choices" else []
