"""What the studies' scripts share as commands."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from perceptune.data.bootstrap import bootstrap_interval
from perceptune.errors import UserError


def end_with(main: Callable[[], int | None]) -> NoReturn:
    """Ends with what `main` gives; a mistake of the user is one line and exit code 2."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines. Raises `UserError` for a missing file."""
    if not path.is_file():
        raise UserError(f"{path} is not there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def figure(label: str, what: str, values: Sequence[float], groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a row of a table of figures: mean, interval and number of values; `groups` names dependent values."""
    return {
        "label": label, "what": what, "samples": len(values), "value": sum(values) / len(values) if values else None,
        "interval": list(bootstrap_interval(values, groups=groups)) if values else None,
    }  # fmt: skip


def write_table(folder: Path, name: str, rows: Sequence[dict[str, Any]], **more: str) -> None:
    """Write the table that `collect.py` reads."""
    table = {"name": name, "kind": "figures", **more, "rows": rows}
    (folder / "table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
