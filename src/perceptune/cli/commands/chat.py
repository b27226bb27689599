"""Talk to a run in the terminal: a line is a question, and earlier turns are kept.

Examples:
  perceptune chat runs/mine --image photo.jpg
  perceptune chat runs/mine --system "Answer in one word." decode.max_new_tokens=40
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from perceptune.cli.parsing import Namespace, Parser, any_text, not_negative
from perceptune.errors import UserError, nearest
from perceptune.utils.terminal import printable

if TYPE_CHECKING:
    from perceptune.models.conversation import Conversation

KINDS = ("image", "audio", "video")
COMMANDS = """\
/image FILE, /audio FILE, /video FILE   attach a file to the next question; again for another
/detach                                 drop the attached files
/reset                                  forget the conversation and attached files
/save FILE                              write the conversation, as task `messages` reads it
/help                                   print this
/exit                                   end, as the end of the input does"""


def add_arguments(parser: Parser) -> None:
    """Add the options."""
    parser.add_argument("run", help="run folder")
    parser.add_overrides("decode.* keys, such as decode.beams=3", prefixes=("decode.", "eval.", "cache."))
    for kind in KINDS:
        parser.add_argument(f"--{kind}", metavar="FILE", action="append", default=[],
                            help=f"{kind} file of the first question; may be repeated")  # fmt: skip
    parser.add_argument("--system", type=any_text, metavar="TEXT", help="system message")
    parser.add_argument("--reuse-mb", type=not_negative, default=256, metavar="N",
                        help="MiB for what earlier turns computed; 0 = none (default: %(default)s)")  # fmt: skip
    parser.add_trust()


def run(options: Namespace) -> None:
    """Answer until the input ends."""
    from perceptune.data.storage import local_path
    from perceptune.models.conversation import Conversation
    from perceptune.models.run_folder import has_histories, load, read_meta
    from perceptune.models.run_location import local_run

    attached = [(kind, local_path(file, f"--{kind}")) for kind in KINDS for file in getattr(options, kind)]
    model = load(options.run, trust=options.trust, overrides=options.overrides)
    talk = Conversation(model, system=options.system, reuse_mb=options.reuse_mb)
    if not talk.keeps_history:
        print("note: this run takes single questions, each of which is answered by itself", file=sys.stderr)
    elif not has_histories(read_meta(local_run(options.run))):
        print("note: this run was trained on single questions, not on conversations", file=sys.stderr)
    Session(talk, attached).run(_lines())


class Session:
    """A conversation, and the files that are attached to its next question."""

    def __init__(self, talk: Conversation, attached: list[tuple[str, Path]]) -> None:
        self.talk, self.attached = talk, attached

    def run(self, lines: Iterator[str]) -> None:
        """Execute commands and answer questions; a mistake is reported, and changes nothing."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "/exit":
                return
            try:
                if word.startswith("/"):
                    self._command(word, rest.strip())
                elif word:
                    self._ask(line.strip())
            except UserError as error:
                print("error:", printable(str(error)), file=sys.stderr)

    def _ask(self, question: str) -> None:
        try:
            print(self.talk.ask(question, self.attached), flush=True)
        except UserError as error:
            said = str(error).removeprefix("sample `question`: ").replace("sample `question`", "the conversation", 1)
            hint = "; the attached files are kept: /detach drops them" if self.attached else ""
            raise UserError(said + hint) from error
        self.attached = []

    def _command(self, word: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            **{f"/{kind}": self._attach(kind) for kind in KINDS},
            "/detach": self._detach,
            "/reset": self._reset, "/save": self._save, "/help": lambda _: print(COMMANDS), "/exit": lambda _: None,
        }  # fmt: skip
        if word not in commands:
            raise UserError(f"unknown command `{word}`{nearest(word, commands)}")
        commands[word](rest)

    def _attach(self, kind: str) -> Callable[[str], None]:
        def attach(name: str) -> None:
            from perceptune.data.storage import local_path

            path = local_path(name, f"/{kind}") if name else None
            if path is None or not path.is_file():
                raise UserError(f"/{kind} {name}: no such file")
            self.attached.append((kind, path))

        return attach

    def _detach(self, _: str) -> None:
        self.attached = []

    def _reset(self, _: str) -> None:
        self.talk.reset()
        self.attached = []

    def _save(self, name: str) -> None:
        from perceptune.utils.atomic_io import write_text

        row = self.talk.to_row()
        if not name or not row["messages"]:
            kept = "it has no turns" if self.talk.keeps_history else "this run's questions are answered by themselves"
            raise UserError("/save FILE writes the conversation: " + (kept if name else "name a file"))
        write_text(Path(name), json.dumps([row], ensure_ascii=False, indent=1) + "\n")


def _lines() -> Iterator[str]:
    """Yield the lines of the input, after a prompt if it is a terminal."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # editing and history of lines
    print("a line is a question; /help names the commands", file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
