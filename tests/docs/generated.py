"""The generated parts of the documentation: the command line's help, recipe keys, the public API, the papers' facts.

python tests/docs/generated.py --write      (or: make docs)
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(Path(__file__).parents[1]))  # `facts`, if this is run by itself


def command_line() -> str:
    """docs/cli.md"""
    os.environ["COLUMNS"] = "100"
    from perceptune.cli.main import parser

    top = parser()
    commands: Any = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    text = ["# Command line", "", "Written by `make docs` from the program itself.", "", _block(top.format_help())]
    for name, command in commands.choices.items():
        text += ["", f"## {name}", "", _block(command.format_help())]
        for action in command._actions:
            if isinstance(action, argparse._SubParsersAction):  # a group of commands
                for part, inside in action.choices.items():
                    text += ["", f"### {name} {part}", "", _block(inside.format_help())]
    return "\n".join(text) + "\n"


def recipe_keys() -> str:
    """docs/recipe.md"""
    from perceptune.config.recipe import Recipe
    from perceptune.config.registry import leaves
    from perceptune.tools.list_components import entries

    text = [
        "# Recipe keys",
        "",
        "Written by `make docs` from the defaults in the code. A recipe holds only differences.",
        "",
    ]
    text += _table(Recipe)
    for kind in ("methods", "qformer_methods", "tasks"):
        alike: dict[type[BaseModel], list[str]] = {}
        for name, leaf in leaves(kind).items():
            owner = leaf.module.TASK if kind == "tasks" else leaf.module.METHOD
            alike.setdefault(owner.Options, []).append(name)
        for options, names in alike.items():
            shown = names if kind == "tasks" else names[:1]
            text += [
                "",
                f"## {kind[:-1].replace('_', '-')}: {', '.join(f'`{name}`' for name in shown)}",
                "",
                *_table(options),
            ]
    for kind in ("methods", "qformer-methods", "encoders", "tasks", "metrics"):
        text += ["", f"## Names of {kind}", "", "| name | |", "|---|---|"]
        for entry in entries(kind):
            formula = f"; trains `{entry['trained']}`" if "trained" in entry else ""
            text.append(f"| `{entry['name']}` | {entry['description'].rstrip('.').replace('|', 'or')}{formula} |")
    return "\n".join(text) + "\n"


def python_api() -> str:
    """docs/api.md, where mkdocstrings puts signatures and docstrings."""
    import perceptune

    text = [
        "# Python API",
        "",
        "Written by `make docs` from `perceptune.__all__`: import each as `perceptune.NAME`. In the site, signatures",
        "and docstrings replace the lines below.",
    ]
    objects = [getattr(perceptune, name) for name in perceptune.__all__ if name != "__version__"]
    for value in sorted(objects, key=inspect.isclass):  # functions first
        text += ["", f"::: {value.__module__}.{value.__qualname__}"]
    return "\n".join(text) + "\n"


def papers() -> str:
    """docs/papers.md, of which the part between the marks is made from the facts."""
    before, _, rest = (DOCS / "papers.md").read_text(encoding="utf-8").partition(BEGIN)
    return "\n".join([before + BEGIN, "", *_facts(), "", END + rest.partition(END)[2]])


BEGIN, END = "<!-- written by `make docs` from recipes/paper/facts.yaml -->", "<!-- end -->"
GENERATED = {"cli.md": command_line, "recipe.md": recipe_keys, "api.md": python_api, "papers.md": papers}


def _facts() -> list[str]:
    """Where paper and code differ or neither is followed, numbered; then the recipes with the numbers that apply."""
    import facts

    notes: dict[str, int] = {}
    rows = []
    for name, entry in facts.table()["recipes"].items():
        found = sorted(
            notes.setdefault(_note(key, fact), len(notes) + 1)
            for key, fact in facts.facts(name).items()
            if (fact.differs or fact.follow == "ours") and not key.endswith(".dir") and fact.said["source"] != "-"
        )
        rows.append(f"| `paper/{name}` | {entry['row']} | {', '.join(map(str, found))} |")
    listed = [f"| {number} {note}" for note, number in notes.items()]
    return [
        "| | key | paper | released code | here | source | why |", "|---|---|---|---|---|---|---|", *listed,
        "", "| recipe | row | differs in |", "|---|---|---|", *rows,
    ]  # fmt: skip


def _note(key: str, fact: Any) -> str:
    """A row of the table, without its number."""

    def shown(who: str) -> str:
        if who not in fact.said:
            return "-"
        value = fact.said[who]
        text = "as `train.epochs`" if value == "=train.epochs" else f"`{json.dumps(value)}`"
        return text if len(text) <= 70 else "its own list"

    here = shown("value") if fact.follow == "ours" else f"{fact.follow}'s"
    cells = [f"`{key}`", shown("paper"), shown("code"), here, fact.said["source"], fact.said["why"]]
    return "| " + " | ".join(cell.replace("|", "or") for cell in cells) + " |"


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _table(model: type[BaseModel]) -> list[str]:
    return ["| key | type | default | |", "|---|---|---|---|", *_rows(model, "")]


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    from perceptune.config.hold_out import HoldOutConfig
    from perceptune.config.recipe import _model_in
    from perceptune.config.schema import EncoderConfig, OtherSet
    from perceptune.config.section import ConfigSection

    rows = []
    for name, field in model.model_fields.items():
        inside = _model_in(field.annotation)
        if name == "encoders":
            rows += _rows(EncoderConfig, f"{prefix}encoders.MODALITY.")
        elif name == "others":
            rows += _rows(OtherSet, f"{prefix}others.NAME.")
        elif inside is HoldOutConfig:
            rows.append(_row(f"{prefix}{name}", "int or float or mapping", field))
            rows += _rows(inside, f"{prefix}{name}.") if prefix == "train." else []
        elif inside is not None and issubclass(inside, ConfigSection):
            rows += _rows(inside, f"{prefix}{name}.")
        elif inside is not None:
            rows.append(f"| `{prefix}{name}.name` | str | | with the keys of that {name}, below |")
        else:
            kind = (
                str(field.annotation)
                .replace("typing.", "")
                .replace("pathlib.", "")
                .replace("<class '", "")
                .replace("'>", "")
            )
            rows.append(_row(f"{prefix}{name}", kind.replace("|", "or"), field))
    return rows


def _row(key: str, kind: str, field: Any) -> str:
    default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
    return f"| `{key}` | {kind} | {default} | {field.description or ''} |"


if __name__ == "__main__":
    for file, make in GENERATED.items():
        if "--write" in sys.argv:
            (DOCS / file).write_text(make(), encoding="utf-8")
        elif not (DOCS / file).exists() or (DOCS / file).read_text(encoding="utf-8") != make():
            sys.exit(f"docs/{file} is out of date: make docs")
