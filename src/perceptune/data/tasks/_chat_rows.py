"""Forms of conversations in rows: a list of turns, or one question with its answer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from perceptune.data.media.suffixes import MODALITIES
from perceptune.data.records import Record, json_type, short
from perceptune.data.tasks._media_names import names_of
from perceptune.errors import nearest

TURN_KEYS = ("conversations", "messages", "conversation", "dialog", "dialogue")
_STYLES = (("from", "value"), ("role", "content"))
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"), **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "ai"), "model"),
}  # fmt: skip
_TOOLS = {
    *("tool", "tools", "function", "functions", "ipython", "observation", "environment", "tool_calls"),
    *(f"{kind}_{what}" for kind in ("tool", "function") for what in ("call", "response", "result", "output")),
}
_COMPLETIONS = ("completion", "chosen")  # answers to the key `prompt`


class Turn(NamedTuple):
    """One turn of a conversation."""

    role: str  # `system`, `user` or `model`
    text: str
    is_trained: bool = True  # whether an answer becomes a sample
    media: Mapping[str, list[str]] = {}  # modality -> files that the turn names


class Chat(NamedTuple):
    """The turns of a row."""

    turns: list[Turn]
    keys: tuple[str, ...]  # of the row, which the turns were read from


def is_conversation(values: Mapping[str, Any]) -> bool:
    """Return whether a row has one of the forms that the readers of conversations take."""
    for key in (*TURN_KEYS, *_COMPLETIONS):
        turns = values.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and _style(turns[0]) is not None:
            return True
    pairs = (("query", "response"), ("instruction", "output"))
    return any(isinstance(values.get(question), str) and values.get(answer) is not None for question, answer in pairs)


def chat_of(record: Record, own: str) -> Chat:
    """Parse the turns of a row; `own` is the key of turns that goes before all others."""
    values = record.values
    found = [key for key in dict.fromkeys((own, *TURN_KEYS)) if values.get(key) is not None]
    if len(found) > 1 and own not in found:
        raise record.error(f"both `{found[0]}` and `{found[1]}` hold turns; leave one out")
    if found:
        turns, better = _turns(record, found[0], values[found[0]]), values.get("chosen")
        if isinstance(better, dict):  # the answer to the last of these turns, as in LLaMA-Factory
            turns = [turn._replace(is_trained=False) for turn in turns] + _turns(record, "chosen", [better])
            return Chat(turns, (found[0], "chosen", "rejected"))
        return Chat(turns, (found[0],))
    completion = next((key for key in _COMPLETIONS if values.get(key) is not None), None)
    if completion is not None:
        return Chat(_completed(record, completion), ("prompt", completion, "rejected"))
    for question, answer in (("query", "response"), ("instruction", "output")):
        if values.get(question) is not None and values.get(answer) is not None:
            keys = (question, answer, "history", "system", *(["input"] if question == "instruction" else []))
            return Chat(list(_asked_once(record, question, answer)), keys)
    raise record.lacks([own])


def _completed(record: Record, key: str) -> list[Turn]:
    """Return the turns of `prompt` and `completion`, of which only the completion is trained."""
    asked, answered = _as_turns(record.values.get("prompt"), "user"), _as_turns(record.values[key], "assistant")
    before = [turn._replace(is_trained=False) for turn in _turns(record, "prompt", asked)]
    if isinstance(answered, list) and answered[: len(before)] == asked:  # `chosen` is often the whole conversation
        answered = answered[len(before) :]
    after = _turns(record, key, answered)
    if before and after and after[0].role != "model":
        raise record.error(f"`{key}` begins with a turn of the {after[0].role}, which is not in `prompt`")
    return before + after


def _as_turns(value: object, role: str) -> object:
    """Return a text as a list of one turn."""
    return [{"role": role, "content": value}] if isinstance(value, str) else [] if value is None else value


def _asked_once(record: Record, question: str, answer: str) -> Iterator[Turn]:
    """Yield the turns of a row in the form of ms-swift (`query`) or alpaca (`instruction`)."""
    values = record.values
    if values.get("system"):
        yield Turn("system", _said(record, "system", values["system"]))
    history = values.get("history") or []
    if not isinstance(history, list):
        raise record.error(f"`history` is {json_type(history)}, not a list of pairs", "wrong-type")
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            shown = f"a list of {len(pair)}" if isinstance(pair, list) else json_type(pair)
            raise record.error(f"`history[{index}]` is {shown}, not a pair of question and answer", "wrong-type")
        asked, answered = (_said(record, f"history[{index}]", text) for text in pair)
        yield from (Turn("user", asked), Turn("model", answered))
    last = _said(record, question, values[question])
    if question == "instruction" and values.get("input") not in (None, ""):
        last += "\n" + _said(record, "input", values["input"])
    yield Turn("user", last)
    yield Turn("model", _said(record, answer, values[answer]))


def _turns(record: Record, key: str, turns: object) -> list[Turn]:
    """Parse a list of turns."""
    if not isinstance(turns, list):
        raise record.error(f"`{key}` is {json_type(turns)}, not a list")
    found = []
    for index, turn in enumerate(turns):
        where = f"{key}[{index}]"
        if not isinstance(turn, dict):
            raise record.error(f"`{where}` is {json_type(turn)}, not an object")
        found.append(_turn(Record(f"{record.where}: `{where}`", turn, ())))
    return found


def _turn(part: Record) -> Turn:
    speaker, content = _style(part.values) or _STYLES["role" in part.values or "content" in part.values]
    for wanted in (speaker, content):
        if wanted not in part.values:
            raise part._replace(keys=(speaker, content)).lacks([wanted])
    name = part.text(speaker).strip().lower()
    if name in _TOOLS:
        raise part.error(f"`{speaker}` is `{name}`, but turns of tools are not read; leave the row out")
    if used := next((key for key in ("tool_calls", "function_call") if part.values.get(key)), None):
        raise part.error(f"it has `{used}`, but calls of tools are not read; leave the row out")
    if name not in _ROLES:
        raise part.error(f"unknown `{speaker}` `{short(name)}`{nearest(name, _ROLES)}")
    files: dict[str, list[str]] = {}
    text = _text(part, content, files)
    for modality, names in media_beside(part, {modality: (modality, f"{modality}s") for modality in MODALITIES}):
        files.setdefault(modality, []).extend(names)
    if files and _ROLES[name] == "model":
        raise part.error(f"the model answers with {next(iter(files))}, but answers are texts; leave the row out")
    ignored = any(part.values.get(key) in (0, False) for key in ("weight", "loss") if part.values.get(key) is not None)
    return Turn(_ROLES[name], text, not ignored, {modality: names for modality, names in files.items() if names})


def _style(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the keys of speaker and content; None if no pair of them is complete."""
    complete = [style for style in _STYLES if all(key in turn for key in style)]
    return next((style for style in complete if turn[style[0]] is not None), complete[0] if complete else None)


def _text(part: Record, key: str, files: dict[str, list[str]]) -> str:
    """Return the text of a turn; media among its parts are added to `files` and replaced by tags."""
    content = part.values[key]
    if not isinstance(content, list | dict):
        return _said(part, key, content)
    texts = []
    for index, item in enumerate(content if isinstance(content, list) else [content]):
        where = f"{key}[{index}]" if isinstance(content, list) else key
        if isinstance(item, str):
            texts.append(part.check_text(where, item))
            continue
        if not isinstance(item, dict):
            raise part.error(f"`{where}` is {json_type(item)}, not an object")
        kind, value = _part(part, where, item)
        if kind == "text":
            texts.append(_said(part, f"{where}.text", value))
            continue
        names = names_of(part, f"{where}.{kind}", value)
        texts.append(f"<{kind}>" * max(len(names), 1))
        files.setdefault(kind, []).extend(names)
    return "".join(texts)


def _part(record: Record, where: str, item: Mapping[str, Any]) -> tuple[str, object]:
    """Return the kind of a part, `text` or a modality, and its value; None for a file that is listed elsewhere."""
    given = item.get("type")
    if given is None:  # the one key that has a value
        given = next((key for key, value in item.items() if value is not None), "")
    kind = str(given).removeprefix("input_").removeprefix("output_").removesuffix("_url")
    if kind not in ("text", *MODALITIES):
        raise record.error(f"`{where}`: unknown type `{short(str(given))}`{nearest(kind, ('text', *MODALITIES))}")
    keys = ("text",) if kind == "text" else (kind, f"{kind}_url", f"input_{kind}", "path", "url", "source", "base64")
    used = next((key for key in keys if item.get(key) is not None), None)
    return kind, {"base64": item["base64"]} if used == "base64" else item[used] if used else None


def _said(record: Record, key: str, value: object) -> str:
    """Return a text, or a number as text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return record.check_text(key, value)


def media_beside(record: Record, keys: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the modality and the files of each key of the row that names media."""
    for modality, names in keys.items():
        for key in names:
            value = record.values.get(key)
            if value is not None and (found := names_of(record, key, value)):
                yield modality, found
