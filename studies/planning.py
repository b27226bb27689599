"""The parts of the studies, as `plan.yaml` lists them."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perceptune.errors import UserError, nearest
from perceptune.tools.compare.plan import folder_name, setting_name
from perceptune.utils.markdown import markdown_table

ROOT = Path(__file__).parents[1]  # what recipes and commands are relative to
STUDIES = ROOT / "studies"
RUNS = Path("runs/study")  # what the parts write, below `ROOT`
LANES = 2  # parts at a time
MOST = 20.0  # minutes of a part, or of one sitting of a long run


@dataclass(frozen=True)
class Part:
    """One part: its commands and how long they take."""

    name: str
    title: str
    question: str
    published: Sequence[str]  # tables of `published.yaml`
    commands: Sequence[str]
    runs: int  # trainings, or evaluations where nothing is trained
    seconds: float  # of one of them on one core, loading and answers included
    needs: Sequence[str] = ()
    sittings: int = 1  # of one command that takes longer than a part may, and goes on from what it has finished
    recipes: Sequence[str] = ()
    alone: bool = False  # time is measured: nothing runs beside it

    @property
    def folders(self) -> frozenset[str]:
        """What it writes to, as the commands name it."""
        words = [shlex.split(command) for command in self.commands]
        named = [option(one, name) for one in words for name in ("--run", "--out")]
        return frozenset(folder for folder in named if folder is not None)

    @property
    def minutes(self) -> float:
        return self.runs * self.seconds / 60


@dataclass(frozen=True)
class Open:
    """What cannot be told here, and why."""

    title: str
    published: Sequence[str]
    reason: str


@dataclass(frozen=True)
class Plan:
    """All parts in their order."""

    parts: Sequence[Part]
    open: Sequence[Open]

    @property
    def hours(self) -> float:
        """Of all parts, so many at a time; where one runs alone its time counts for all lanes."""
        return sum(part.minutes * (LANES if part.alone else 1) for part in self.parts) / LANES / 60

    def named(self, names: Sequence[str]) -> list[Part]:
        """Those parts, in the plan's order; all where none is named. Raises `UserError` for an unknown name."""
        known = [part.name for part in self.parts]
        for name in names:
            if name not in known:
                raise UserError(f"no part `{name}`{nearest(name, known)}")
        return [part for part in self.parts if not names or part.name in names]


def load_plan(path: Path | None = None) -> Plan:
    """The plan. Raises `UserError` for a part that needs one that does not come before it."""
    data = yaml.safe_load((path or STUDIES / "plan.yaml").read_text(encoding="utf-8"))
    parts = [Part(**one) for one in data["parts"]]
    names = [part.name for part in parts]
    for number, part in enumerate(parts):
        if later := [need for need in part.needs if need not in names[:number]]:
            raise UserError(f"part `{part.name}` needs `{later[0]}`, which does not come before it")
    return Plan(parts, [Open(**one) for one in data["cannot_tell"]])


def words_of(command: str, raw: Path, runs: Path = RUNS) -> list[str]:
    """A command's words with its places filled in.

    `{raw}` is the folder of the data sets, `{data}` that of the prepared ones, `{runs}` where parts write, and
    `{best:FOLDER/LABEL}` the first run of what a comparison chose for a label.
    """
    filled = command.replace("{raw}", str(raw)).replace("{data}", str(runs / "data")).replace("{runs}", str(runs))
    found = re.sub(r"\{best:([\w-]+)/([\w.-]+)\}", lambda m: str(best_run(runs / m[1], m[2])), filled)
    return shlex.split(found)


def best_run(comparison: Path, label: str) -> Path:
    """The run folder of a label's chosen setting and first seed. Raises `UserError` if there is none."""
    table = ROOT / comparison / "compare.json"
    if not table.is_file():
        raise UserError(f"{comparison} has no compare.json yet: run the part that writes it first")
    result = json.loads(table.read_text(encoding="utf-8"))
    rows: Mapping[str, Any] = {row["label"]: row for row in result["rows"]}
    if label not in rows:
        raise UserError(f"{comparison} has no row `{label}`{nearest(label, list(rows))}")
    setting = folder_name(setting_name(rows[label]["setting"]))
    return comparison / "runs" / folder_name(label) / setting / f"seed-{result['seeds'][0]}"


def option(words: Sequence[str], name: str) -> str | None:
    """The value behind an option."""
    return words[words.index(name) + 1] if name in words else None


def headline(metrics: Sequence[str]) -> str:
    """The metric that stands for an evaluation: CIDEr among those of captions."""
    return "CIDEr" if "CIDEr" in metrics else metrics[0]


def listing(plan: Plan) -> str:
    """The table of runs x minutes, which adds up."""
    rows = []
    for part in plan.parts:
        published = ", ".join(part.published).replace("epalm-", "").replace("petal-", "PETAL ")
        minutes = f"{part.minutes:.1f}" + (f" in {part.sittings} sittings" if part.sittings > 1 else "")
        needs = ", ".join(part.needs)
        rows.append([f"`{part.name}`", published, str(part.runs), f"{part.seconds:.0f}", minutes, needs])
    runs, minutes = sum(part.runs for part in plan.parts), sum(part.minutes for part in plan.parts)
    total = f"{minutes:.1f}; two at a time {plan.hours:.1f} hours"
    rows.append([f"{len(plan.parts)} parts", "", str(runs), "", total, ""])
    return "\n".join(markdown_table(["part", "published", "runs", "seconds each", "minutes", "needs"], rows)) + "\n"
