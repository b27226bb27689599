"""Text of untrusted data on a terminal."""

import sys

from perceptune.utils.run_log import is_main_process


def printable(text: str) -> str:
    """Escape control characters, line breaks included, and characters that cannot be encoded."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_note(line: str) -> None:
    """Print a line that may name parts of the data to stderr, once for all processes of a launch."""
    if is_main_process():
        print(printable(line), file=sys.stderr)
