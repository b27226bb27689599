"""Score a file of predictions against a file of references.

Examples:
  perceptune score predictions.jsonl references.jsonl --metric caption
  perceptune score results.json annotations.json --metric vqa --dialect always --per-sample scores.jsonl
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perceptune.cli.output import print_confusions, print_found
from perceptune.cli.parsing import Namespace, Parser, split_words
from perceptune.errors import UserError


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("predictions", help="JSONL, a table or a JSON list: COCO or VQA results, a run's predictions")
    parser.add_argument("references", help="JSONL, a table, or COCO, VQA, GQA or A-OKVQA annotations")
    parser.add_overrides("options of the metric, such as lowercase=true")
    parser.add_argument("--metric", required=True, metavar="NAME[,NAME]", help="names of `perceptune list metrics`")
    parser.add_argument("--dialect", help="rules of a metric with several; `perceptune list metrics` names them")
    parser.add_argument("--subset", action="store_true", help="leave out samples without a prediction")
    parser.add_argument("--first-lines", action="store_true", help="compare only the first line of each text")
    parser.add_argument("--per-sample", metavar="FILE", help="write the values of each sample as a JSON line, too")
    parser.add_argument("--no-intervals", action="store_true", help="skip bootstrap intervals")
    parser.add_json()


def run(options: Namespace) -> None:
    """Score the files. Does not import torch."""
    from perceptune.evaluation.score_files.run import score_files

    keys = [*options.overrides, *([f"dialect={options.dialect}"] if options.dialect else [])]
    target = _target(options)
    scores = score_files(
        options.predictions, options.references, split_words(options.metric), options=keys, subset=options.subset,
        intervals=not options.no_intervals, first_lines=options.first_lines,
    )  # fmt: skip
    if target is not None:
        from perceptune.utils.atomic_io import write_json_lines

        write_json_lines(target, scores.rows)
    for note in scores.notes:
        print(f"note: {note}", file=sys.stderr)
    print_found(scores.result, _lines(scores), as_json=options.json)
    if not options.json:
        print_confusions(scores.result)


def _target(options: Namespace) -> Path | None:
    """Return the output file, which must not be one of the inputs: checked before an hour of scoring."""
    if options.per_sample is None:
        return None
    target = Path(options.per_sample)
    for name in (options.predictions, options.references):
        if target.exists() and Path(name).exists() and target.samefile(name):
            raise UserError(f"`--per-sample {target}` would overwrite the file that is scored")
    if not target.parent.is_dir():
        raise UserError(f"`--per-sample {target}`: there is no folder {target.parent}")
    return target


def _lines(scores: Any) -> Iterator[str]:
    """Return the values with their intervals, then their meaning."""
    result = scores.result
    spans = {key: result[f"{key}_interval"] for key in scores.keys if f"{key}_interval" in result}
    width = max(map(len, scores.keys))
    for key in scores.keys:
        between = "  ({:.4f} to {:.4f})".format(*spans[key]) if key in spans else ""
        yield f"{key:<{width}}  {result[key]:.4f}{between}"
    yield f"{result['n']} samples{'; in brackets 95 % bootstrap intervals' if spans else ''}"
    yield f"definition: {json.dumps(result['definition'], ensure_ascii=False)}"
