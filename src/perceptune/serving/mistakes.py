"""Error messages for invalid requests: the part, its key, and the allowed values."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Step = int | str
Classes = Mapping[str, type[BaseModel]]
_FORMS = {("response_format",), ("text", "format")}
_LISTABLE = 12  # maximum number of an object's keys that a message lists
_NAMED = 2  # of the keys of an expected object
_ADDRESSES = ("image_url", "audio_url", "video_url")
_LISTS = {"content": "parts", "stop": "texts", "input": "messages"}


def explain(error: ErrorDetails, request: type[BaseModel], parts: Classes, turns: str) -> tuple[str, str]:
    """Return the location of the error, as `messages.0.content.1.text`, and a sentence without the location.

    `parts` are the kinds of parts of a message, by their `type`; `turns` is the key of the messages.
    """
    found = error["loc"]
    # After a part's index pydantic inserts its type, which is not a key of the request.
    where = [step for place, step in enumerate(found) if not (place and _has_type(found[:place], turns))]
    return ".".join(map(str, where)), _describe(error, where, request, parts, turns)


def _has_type(where: Sequence[Step], turns: str) -> bool:
    """Return whether an object at this location is one of several kinds, which its `type` tells apart."""
    is_part = len(where) == 4 and where[0] == turns and where[2] == "content"
    return is_part or tuple(where) in _FORMS


def _describe(error: ErrorDetails, where: Sequence[Step], request: type[BaseModel], parts: Classes, turns: str) -> str:
    last = str(where[-1]) if where else ""
    if error["type"] == "extra_forbidden":
        fields = _class_at(error["loc"][:-1], request, parts, turns).model_fields
        return _unknown(last, [field.alias or name for name, field in fields.items()])
    if error["type"] == "model_type":
        fields = _class_at(error["loc"], request, parts, turns).model_fields
        needed = sorted(fields, key=lambda key: not fields[key].is_required())
        keys = " and ".join(f"`{key}`" for key in needed[:_NAMED])
        return f"is neither an address nor an object with {keys}" if last in _ADDRESSES else f"is no object with {keys}"
    kind, kinds = ("form", _expected(error)) if tuple(where) in _FORMS else ("part", ", ".join(parts))
    sentences = {
        "missing": "is missing" + (": an address, or an object with `url`" if last in _ADDRESSES else ""),
        "union_tag_not_found": f"a {kind} has a `type`; allowed are {kinds}",
        "union_tag_invalid": f"no {kind} has the type `{_tag(error)}`; allowed are {kinds}",
        "model_attributes_type": f"a {kind} is an object with a `type`",
        "dict_type": "is not an object",
        "list_type": f"is neither a text nor a list of {_LISTS[last]}" if last in _LISTS else "is not a list",
    }
    if error["type"] in sentences:
        return sentences[error["type"]]
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")


def _tag(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("tag", ""))[:40]


def _expected(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("expected_tags", "text, json_object, json_schema")).replace("'", "")


def _unknown(key: str, keys: Sequence[str]) -> str:
    if len(keys) <= _LISTABLE:
        return f"unknown key; allowed are {', '.join(keys)}"
    near = difflib.get_close_matches(key, keys, n=1)
    return f"unknown key; did you mean `{near[0]}`?" if near else "unknown key, which might change the answer"


def _class_at(where: Sequence[Step], request: type[BaseModel], parts: Classes, turns: str) -> type[BaseModel]:
    """Return the class of the object at a location."""
    here: type[BaseModel] = request
    annotation: object = None
    for place, step in enumerate(where):
        if place and _has_type(where[:place], turns):
            here = parts[str(step)] if step in parts and where[0] == turns else _of_type(annotation, str(step))
        elif isinstance(step, str):
            annotation = here.model_fields[step].annotation
            here = next(_objects_in(annotation), here)
    return here


def _of_type(annotation: object, kind: str) -> type[BaseModel]:
    """Return the class of an annotation whose `type` is the given one."""
    return next(one for one in _objects_in(annotation) if kind in get_args(one.model_fields["type"].annotation))


def _objects_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the classes of objects in an annotation: `Url` in `Url`, `Url | None`, `list[Url]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _objects_in(inner)
