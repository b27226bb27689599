"""Error messages for invalid requests: the part, its key, and the allowed values."""

import difflib
from collections.abc import Mapping, Sequence
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Step = int | str
Classes = Mapping[str, type[BaseModel]]
_LISTABLE = 12  # maximum number of an object's keys that a message lists
_NAMED = 2  # of the keys of an expected object
_ADDRESSES = ("image_url", "audio_url", "video_url")
_LISTS = {"content": "parts", "stop": "texts", "input": "messages"}


def explain(error: ErrorDetails, request: type[BaseModel], parts: Classes, turns: str = "messages") -> tuple[str, str]:
    """Return the location of the error, as `messages.0.content.1.text`, and a sentence without the location.

    `parts` are the kinds of parts of a message, by their `type`; `turns` is the key of the messages.
    """
    found = error["loc"]
    # After a part's index pydantic inserts its type, which is not a key of the request.
    where = [step for place, step in enumerate(found) if not (place and _is_part(found[:place], turns))]
    return ".".join(map(str, where)), _describe(error, where, request, parts, turns)


def _is_part(where: Sequence[Step], turns: str) -> bool:
    return len(where) == 4 and where[0] == turns and where[2] == "content"


def _describe(error: ErrorDetails, where: Sequence[Step], request: type[BaseModel], parts: Classes, turns: str) -> str:
    last = str(where[-1]) if where else ""
    if error["type"] == "extra_forbidden":
        return _unknown(last, list(_class_at(error["loc"][:-1], request, parts, turns).model_fields))
    if error["type"] == "model_type":
        fields = _class_at(error["loc"], request, parts, turns).model_fields
        needed = sorted(fields, key=lambda key: not fields[key].is_required())
        keys = " and ".join(f"`{key}`" for key in needed[:_NAMED])
        return f"is neither an address nor an object with {keys}" if last in _ADDRESSES else f"is no object with {keys}"
    sentences = {
        "missing": "is missing" + (": an address, or an object with `url`" if last in _ADDRESSES else ""),
        "union_tag_not_found": f"a part has a `type`; allowed are {', '.join(parts)}",
        "union_tag_invalid": f"no part has the type `{_tag(error)}`; allowed are {', '.join(parts)}",
        "model_attributes_type": "a part is an object with a `type`",
        "dict_type": "is not an object",
        "list_type": f"is neither a text nor a list of {_LISTS[last]}" if last in _LISTS else "is not a list",
    }
    if error["type"] in sentences:
        return sentences[error["type"]]
    return error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")


def _tag(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("tag", ""))[:40]


def _unknown(key: str, keys: Sequence[str]) -> str:
    if len(keys) <= _LISTABLE:
        return f"unknown key; allowed are {', '.join(keys)}"
    near = difflib.get_close_matches(key, keys, n=1)
    return f"unknown key; did you mean `{near[0]}`?" if near else "unknown key, which might change the answer"


def _class_at(where: Sequence[Step], request: type[BaseModel], parts: Classes, turns: str) -> type[BaseModel]:
    """Return the class of the object at a location."""
    here: type[BaseModel] = request
    for place, step in enumerate(where):
        if place and _is_part(where[:place], turns):
            here = parts[str(step)]
        elif isinstance(step, str):
            here = _object_in(here.model_fields[step].annotation) or here
    return here


def _object_in(annotation: object) -> type[BaseModel] | None:
    """Return the class of the object in an annotation: `Url` in `Url`, `Url | None`, `list[Url]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _object_in(inner))), None)
