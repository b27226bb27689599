"""Answer every row of a file or every file of a folder; resumes after a stop.

Examples:
  perceptune predict runs/mine questions.jsonl
  perceptune predict runs/mine photos --prompt "What is in the picture?" --out answers.jsonl
  perceptune predict runs/mine questions.jsonl --ensemble runs/second --ensemble runs/third
"""

from perceptune.cli.output import out
from perceptune.cli.parsing import Namespace, Parser, any_text


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_argument("source", metavar="FILE|DIR", help="JSON lines with media and prompts, or media files")
    parser.add_overrides("decode.* keys, such as decode.beams=3")
    parser.add_argument("--prompt", type=any_text, help="prompt of rows without `prompt` and of files in a folder")
    parser.add_ensemble()
    parser.add_fetch_media()
    parser.add_argument("--out", metavar="FILE", help="JSON lines to write (default: RUN/predicted_NAME.jsonl)")
    parser.add_argument("--batch-size", type=int, help="rows per batch (default: the recipe's)")
    parser.add_join_timeout()
    parser.add_trust()


def run(options: Namespace) -> int:
    """Write the answers; return 1 if rows could not be answered."""
    from perceptune.evaluation.batch_predict import predict as predict_all

    done = predict_all(
        options.run, options.source, options.out, prompt=options.prompt, trust=options.trust,
        batch_size=options.batch_size, overrides=options.overrides, join_timeout=options.join_timeout,
        fetch_media=options.fetch_media, ensemble=options.ensemble,
    )  # fmt: skip
    went_on = f" ({done.resumed_at} of them were there)" if done.resumed_at else ""
    out.print(f"{done.rows} rows{went_on}: {done.out}")
    if done.errors:
        out.print(f"{done.errors} of them could not be answered: their `error` says why")
    return 1 if done.errors else 0
