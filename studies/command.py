"""What the studies' scripts share as commands."""

import sys
from collections.abc import Callable
from typing import NoReturn

from perceptune.errors import UserError


def end_with(main: Callable[[], int | None]) -> NoReturn:
    """Ends with what `main` gives; a mistake of the user is one line and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
