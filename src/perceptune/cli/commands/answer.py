"""Ask a run about an image, an audio file or a video.

Examples:
  perceptune answer runs/mine --image photo.jpg "what color is this?"
  perceptune answer runs/mine --image photo.jpg "what color is this?" --choices red,green,blue --logprobs
"""

import argparse
import json
from collections.abc import Sequence

from perceptune.cli.parsing import Parser, any_text


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("question", type=any_text, help="question; '' for a run whose template needs none")
    parser.add_overrides("decode.* keys, such as decode.beams=3")
    for kind in ("image", "audio", "video"):
        parser.add_argument(f"--{kind}", metavar="FILE", help=f"{kind} file")
    parser.add_argument("--choices", metavar="A,B,C", help="answer with the most likely of these choices")
    parser.add_argument("--logprobs", action="store_true", help="print log-probabilities of the tokens or choices, too")
    parser.add_json()
    parser.add_trust()


def run(options: argparse.Namespace) -> int:
    """Print the answer."""
    from perceptune.data.choices import choices_of
    from perceptune.data.storage import local_path
    from perceptune.models.run_folder import cleaning_of, load
    from perceptune.types import Sample

    kinds = ("image", "audio", "video")
    media = {kind: local_path(file, f"--{kind}") for kind in kinds if (file := getattr(options, kind))}
    model = load(options.run, trust=options.trust, overrides=options.overrides)
    sample = Sample("question", media, options.question)
    if options.choices:
        texts = [text.strip() for text in options.choices.split(",")]
        choices = choices_of(Sample("--choices", {}, "", meta={"choices": texts}))
        values = model.rank([sample], [choices], normalize=model.recipe.eval.rank_normalize)[0]
        order = sorted(range(len(choices)), key=lambda i: -values[i])
        _print_ranked([(choices[i], values[i]) for i in order], options)
        return 0
    raw = model.answer([sample])[0]
    text = cleaning_of(model)(raw)
    tokens = model.token_logprobs([sample])[0] if options.logprobs else []
    if options.json:
        given = {"tokens": [list(token) for token in tokens]} if options.logprobs else {}
        print(json.dumps({"answer": text, "raw": raw, **given}))
    else:
        print(text)
        for token, value in tokens:
            print(f"{value:9.4f}  {token!r}")
    return 0


def _print_ranked(ranked: Sequence[tuple[str, float]], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps({"answer": ranked[0][0], "logprobs": dict(ranked)}))
        return
    print(ranked[0][0])
    for choice, value in ranked if options.logprobs else ():
        print(f"{value:9.4f}  {choice}")
