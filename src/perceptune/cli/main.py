"""The command line: parses arguments, calls the library, converts user errors to one line and exit code 2."""

import inspect
import io
import os
import shlex
import sys
from collections.abc import Sequence

from perceptune._version import __version__
from perceptune.cli.parsing import Parser, place_overrides
from perceptune.config.registry import leaves
from perceptune.errors import NonMainProcessError, UserError
from perceptune.utils.terminal import printable


def parser() -> Parser:
    """Build the parser of every command in `perceptune.cli.commands`."""
    about = "Image, audio and video input for any frozen LM, by training under 1 % of the parameters."
    top = Parser(prog="perceptune", description=about)
    top.add_argument("--version", action="version", version=f"perceptune {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, command in leaves("commands").items():
        summary, _, examples = inspect.cleandoc(command.module.__doc__ or "").partition("\n\n")
        line = summary[:1].lower() + summary[1:].rstrip(".")
        own = commands.add_parser(name, help=line, description=summary, epilog=examples)
        own.set_defaults(execute=command.module.run)
        command.module.add_arguments(own)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script."""
    code = run(arguments)
    together = sys.modules.get("perceptune.utils.distributed")
    if together is not None and "WORLD_SIZE" in os.environ:  # one of several processes
        together.hard_exit(code)
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a check with findings, 2 for user errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what it cannot encode: a data set may hold any character
            stream.reconfigure(errors="backslashreplace")
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if left := place_overrides(options, rest):
        top.error(f"unrecognized arguments: {' '.join(left)}")
    options.words = shlex.join(["perceptune", *(sys.argv[1:] if arguments is None else arguments)])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads cause warnings when a worker forks
    try:
        code: int | None = options.execute(options)
    except NonMainProcessError:
        return 2
    except UserError as error:
        print("error:", "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `perceptune show ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, missing permissions: for the user to fix, without a traceback
        print(f"error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if shrinking := sys.modules.get("perceptune.data.media.shrinking"):
            shrinking.print_shrunk()
        if together := sys.modules.get("perceptune.utils.distributed"):
            together.destroy_process_group()
    return code or 0
