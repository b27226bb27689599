"""Gemma 3 270M at a place that recipes name: a second LM beside the default one.

    python studies/second_lm.py OUT

OUT becomes a link to the asset `gemma-3-270m`, which is under Gemma's terms of use: it is fetched by `perceptune assets
gemma-3-270m --accept-terms`, and not before. Nothing is done where OUT is there.
"""

import sys
from pathlib import Path

from command import end_with
from perceptune.errors import UserError
from perceptune.utils import downloads


def main() -> int:
    if len(sys.argv) != 2:
        raise UserError("usage: python studies/second_lm.py OUT")
    out = Path(sys.argv[1])
    if not (out / "config.json").is_file():
        folder = downloads.path("gemma-3-270m")
        out.unlink(missing_ok=True)  # a link to an asset that was removed
        out.symlink_to(folder)
    return 0


if __name__ == "__main__":
    end_with(main)
