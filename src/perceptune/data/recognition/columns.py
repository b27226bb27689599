"""The role of each column of a table, by its name or, for media, by its values."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from perceptune.data.media.file_types import HEAD, kind_of
from perceptune.data.media.suffixes import MODALITIES, modality_of
from perceptune.data.records import listed
from perceptune.data.splits import split_of
from perceptune.errors import UserError
from perceptune.utils.paths import shown_name

_NAMES: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("columns.yaml").read_text(encoding="utf-8"))
_SHOWN = 10  # columns in an error
CLASSES = _NAMES["class"]
_NUMBERED = re.compile(r"(.+?)[\s_-]*\d+")
KNOWN = tuple(dict.fromkeys([name for names in _NAMES.values() for name in names] + ["id"]))


class Columns(NamedTuple):
    """The columns with a role."""

    media: dict[str, str]  # modality -> column
    prompt: str | None
    targets: str | tuple[str, ...] | None  # several columns such as `caption_1` to `caption_5`

    def options(self, own: Mapping[str, str]) -> dict[str, Any]:
        """Return reader options for the columns that are not called as in `own` (option -> its default)."""
        found: dict[str, Any] = {f"{modality}_key": name for modality, name in self.media.items()}
        found |= {"prompt_key": self.prompt, "target_key": self.targets}
        return {key: name for key, name in found.items() if name is not None and name != own.get(key)}


def find_columns(rows: Sequence[Mapping[str, Any]], where: str, given: Mapping[str, Any]) -> Columns:
    """Return the columns of the first rows of a table; `given` are options that name some of them already.

    Raises `UserError` for a table without media, and for two columns that could have one role.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    _require_names(names, where)
    media = _media(rows, names, where, given)
    taken = {*media.values()}
    prompt = given.get("prompt_key") or _only(names, _NAMES["prompt"], taken, where, "prompt_key")
    taken.add(prompt or "")
    targets = given.get("target_key") or _targets(names, taken, where, has_prompt=prompt is not None)
    return Columns(media, prompt, targets)


def has_question(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a column is called as questions usually are."""
    return bool(_matching([name for row in rows for name in row], _NAMES["prompt"], set()))


def _require_names(names: Sequence[str], where: str) -> None:
    """Raise `UserError` for a table without a line of names, whose first row is then taken for it."""
    for name in names:
        if "://" in name or any(map(modality_of, re.split(r"[\s#|,;]+", name))):
            raise UserError(
                f"{where}: `{shown_name(name)}` stands where the name of a column is expected: a table begins with a "
                'line of names, such as `image,caption`; in JSON a row is {"image": ..., "caption": ...}'
                + ("; --task cc3m reads Conceptual Captions" if "://" in name else "")
            )


def number_rows(rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, str]:
    """Return the option that numbers rows whose ids repeat, with a note on it; empty if they do not."""
    name = given.get("id_key", "id")
    ids = [str(row[name]) for row in rows if row.get(name) is not None]
    if len({*ids}) == len(ids) or "number_rows" in given:
        return {}
    return {"number_rows": f"rows are numbered, as `{name}` repeats (task.number_rows)"}


def split_note(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return a note on a column with the names of splits, which no reader heeds; empty without one."""
    for name in dict.fromkeys(name for row in rows for name in row):
        values = dict.fromkeys(row[name] for row in rows if isinstance(row.get(name), str))
        if len(values) > 1 and all(map(split_of, values)):
            splits = ", ".join(f"`{value}`" for value in values)
            return (f"column `{name}` ({splits}) is not heeded: give each split a file of its own (--validation)",)
    return ()


def _targets(names: Sequence[str], taken: set[str], where: str, *, has_prompt: bool) -> str | tuple[str, ...] | None:
    """Return the column of the targets; several for numbered ones, such as `caption_1` to `caption_5`."""
    wanted = (*_NAMES["answer"], *_NAMES["caption"], *CLASSES) if has_prompt else (*_NAMES["caption"], *CLASSES)
    if has_prompt and (found := _matching(names, _NAMES["answer"], taken)):
        return (
            found[0]
            if len(found) == 1 or found[0].lower() in ("targets", "answer")
            else _choose(found, where, "target_key")
        )
    if found := _matching(names, wanted, taken):
        return found[0] if len(found) == 1 or found[0] == "targets" else _choose(found, where, "target_key")
    stems: dict[str, list[str]] = {}
    for name in names:
        if (
            name not in taken
            and (match := _NUMBERED.fullmatch(name))
            and plain_name(match[1]) in map(plain_name, wanted)
        ):
            stems.setdefault(plain_name(match[1]), []).append(name)
    several = next(iter(stems.values()), [])
    return tuple(several) if len(several) > 1 else several[0] if several else None


def _media(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], where: str, given: Mapping[str, Any]
) -> dict[str, str]:
    """Return modality -> column: by its name, else by values that are names of media files."""
    media = {modality: str(given[key]) for modality in MODALITIES if given.get(key := f"{modality}_key")}
    for modality in MODALITIES:
        if modality not in media and (found := _matching(names, _NAMES[modality], {*media.values()})):
            exact = [name for name in found if name == modality]
            media[modality] = (
                (exact or found)[0] if exact or len(found) == 1 else _choose(found, where, f"{modality}_key")
            )
    if media:
        return media
    filled = {name: [row[name] for row in rows if row.get(name) not in (None, "", [])] for name in names}
    kinds = {name: _kind_of(values, f"{where}: column `{name}`") for name, values in filled.items()}
    named = [name for name in _matching(names, _NAMES["medium"], set()) if kinds[name]]
    found = named[:1] or [name for name in names if kinds[name]]
    by_kind: dict[str, list[str]] = {}
    for name in found:
        by_kind.setdefault(kinds[name], []).append(name)
    if not by_kind:
        columns = ", ".join(f"`{shown_name(name)}`" for name in names[:_SHOWN])
        raise UserError(
            f"{where}: no column holds media (such as `1.jpg`) among {columns}{' and others' * (len(names) > _SHOWN)}: "
            "name one by task.image_key=COLUMN, task.audio_key=COLUMN or task.video_key=COLUMN"
        )
    return {
        modality: columns[0] if len(columns) == 1 else _choose(columns, where, f"{modality}_key")
        for modality, columns in by_kind.items()
    }


def _kind_of(values: Sequence[Any], where: str) -> str:
    """Return the modality of a column's values; empty if any of them is not a medium or the name of one.

    Raises `UserError` for media of several modalities.
    """
    kinds = {*map(_modality_in, values)}
    if len(kinds) > 1 and None not in kinds:
        raise UserError(
            f"{where} holds media of several kinds ({', '.join(sorted(map(str, kinds)))}): each needs a column of its "
            "own, which is empty in the other rows"
        )
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind or ""


def _modality_in(value: Any) -> str | None:
    """Return the modality of all media in a cell: by the names of files, or by their bytes."""
    kinds = {*map(_modality_of, _items(value))}
    return kinds.pop() if len(kinds) == 1 else None


def _modality_of(value: Any) -> str | None:
    if name := _name_in(value):
        return modality_of(name)
    data = value.get("bytes") if isinstance(value, dict) else value
    kind = kind_of(data[:HEAD]) if isinstance(data, bytes) else None
    return kind.modalities[0] if kind and kind.modalities else None


def paths_of(value: Any) -> list[str]:
    """Return the names of media in a cell: strings, or the `path` of objects, one or a list, also one as text."""
    return [name for item in _items(value) if (name := _name_in(item))]


def _items(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = listed(value) or value
    return [item for item in value if item not in (None, "")] if isinstance(value, list) else [value]


def _name_in(value: Any) -> str | None:
    name = value.get("path") if isinstance(value, dict) else value
    return name if isinstance(name, str) and 0 < len(name) < 1000 else None


def _only(names: Sequence[str], aliases: Sequence[str], taken: set[str], where: str, option: str) -> str | None:
    found = _matching(names, aliases, taken)
    if not found:
        return None
    return found[0] if len(found) == 1 or found[0] == aliases[0] else _choose(found, where, option)


def _matching(names: Sequence[str], aliases: Sequence[str], taken: set[str]) -> list[str]:
    """Return the columns called by one of `aliases`, in the order of these."""
    by_name = {plain_name(name): name for name in reversed(names) if name not in taken}
    return [
        by_name[plain_name(alias)] for alias in dict.fromkeys(map(plain_name, aliases)) if plain_name(alias) in by_name
    ]


def plain_name(name: str) -> str:
    """Return a column's name without letter case, blanks, hyphens and underscores, as names are compared."""
    return re.sub(r"[\s_-]", "", name.casefold())


def _choose(found: Sequence[str], where: str, option: str) -> str:
    """Raise the error for several columns of one role."""
    flags = " or ".join(f"task.{option}={name}" for name in found)
    columns = " and ".join(f"`{name}`" for name in found)
    raise UserError(f"{where}: {columns} could both be meant: choose by {flags}")
