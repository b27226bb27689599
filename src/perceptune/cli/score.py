"""`perceptune score`: any file of predictions against any file of references."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceptune.errors import UserError, disk_error

if TYPE_CHECKING:
    from perceptune.evaluation.score_files.run import FileScores


def score(options: argparse.Namespace) -> int:
    """Scores, prints, and writes a row a sample where that was asked for. Loads no model and no torch."""
    from perceptune.evaluation.score_files.run import score_files

    keys = [*options.overrides, *([f"dialect={options.dialect}"] if options.dialect else [])]
    target = _target(options)
    scores = score_files(
        options.predictions, options.references, _words(options.metric), options=keys, subset=options.subset,
        intervals=not options.no_intervals, first_lines=options.first_lines,
    )  # fmt: skip
    if target is not None:
        _write(target, scores.rows)
    for note in scores.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(scores.result, indent=2) if options.json else _text(scores))
    return 0


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _target(options: argparse.Namespace) -> Path | None:
    """Where rows are to be written, which is none of the files that are read: better said before an hour of scoring."""
    if options.per_sample is None:
        return None
    target = Path(options.per_sample)
    for name in (options.predictions, options.references):
        if target.exists() and Path(name).exists() and target.samefile(name):
            raise UserError(f"`--per-sample {target}` would overwrite the file that is scored")
    if not target.parent.is_dir():
        raise UserError(f"`--per-sample {target}`: there is no folder {target.parent}")
    return target


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    from perceptune.utils.atomic_io import write_whole

    try:
        write_whole(
            path, ((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace") for row in rows)
        )
    except OSError as error:
        raise disk_error(path, error) from error


def _text(scores: FileScores) -> str:
    """The values with their intervals, then what they are."""
    result = scores.result
    width = max(map(len, scores.keys))
    lines = []
    for key in scores.keys:
        low, high = result.get(f"{key}_interval", (None, None))
        between = "" if low is None else f"  ({low:.4f} to {high:.4f})"
        lines.append(f"{key:<{width}}  {result[key]:.4f}{between}")
    how = f"{result['n']} samples" + ("" if not any(f"{key}_interval" in result for key in scores.keys) else
                                      "; in brackets 95 % bootstrap intervals")  # fmt: skip
    return "\n".join([*lines, how, f"definition: {json.dumps(result['definition'], ensure_ascii=False)}"])
