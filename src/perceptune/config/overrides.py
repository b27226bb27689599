"""Overrides `KEY=VALUE` of a command line: values of text keys are taken verbatim, all others are read as YAML.

The type of a value follows from its key, and the keys of a method or a task from that part's name, which may itself be
overridden. So all texts are inserted first and then converted in one pass over the recipe's models.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from perceptune.config.registry import leaf
from perceptune.config.schema import DEFAULT_METHOD
from perceptune.errors import UserError

# Backbone -> kind of leaves that its methods are.
METHODS = {"splice": "methods", "instructblip": "qformer_methods"}
Override = str | tuple[str, Any]  # `KEY=VALUE`, or a key with its value
_NULL = "null"


class Given(str):
    """A value from a command line that has not been converted to its type."""


class _Unknown:
    """Annotation of a key that the model does not have."""


def put(data: dict[str, Any], override: Override) -> None:
    """Set a value in a recipe's mapping; create missing parents. Raises `UserError` for an override of another form."""
    if isinstance(override, str):
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override `{override}` is not of the form key.sub=value")
        value: Any = Given(text)
    else:
        key, value = override
    *parents, last = key.split(".")
    node = data
    for index, part in enumerate(parents):
        child = node.get(part)
        if isinstance(child, Given) and isinstance(mapping := _structure(child), dict):
            child = mapping
        shorthand = _shorthand(part, parents[index - 1] if index else "")
        if isinstance(child, str) and shorthand is not None:  # such as `method: epalm`
            child = {shorthand: child}
        if child is None:
            child = {"name": DEFAULT_METHOD} if part == "method" else {}
        if not isinstance(child, dict):
            raise UserError(f"override `{key}`: `{part}` holds the value {child}, not keys")
        node[part] = child
        node = child
    node[last] = value


def typed(value: Any, annotation: Any, key: str = "", *, backbone: str = "splice") -> Any:
    """Convert every `Given` text in a value to the type of `annotation`.

    Other values stay unchanged; the model validates them later. Raises `UserError` naming the key for a text that is
    neither valid text for the key nor valid YAML.
    """
    if isinstance(value, Given):
        return _read(value, annotation, key, backbone)
    if isinstance(value, list) and _holds_given(value):
        items = _items_of(annotation, len(value))
        return [typed(one, item, key, backbone=backbone) for one, item in zip(value, items, strict=True)]
    if isinstance(value, dict) and _holds_given(value):
        fields = _fields_of(value, annotation, key, backbone)
        return {
            name: typed(one, fields(name), f"{key}.{name}" if key else name, backbone=backbone)
            for name, one in value.items()
        }
    return value


def parse_value(text: str, key: str = "") -> Any:
    """Read a value as YAML."""
    named = f"`{key}`: " if key else ""
    try:
        value = _number(yaml.safe_load(text))
    except yaml.YAMLError:
        raise UserError(f"{named}`{text}` is not valid YAML; put it in quotes") from None
    if value is None and text.lstrip().startswith("#"):
        raise UserError(f"{named}`{text}` is a comment to YAML, no value; put it in quotes")
    return value


def _read(text: str, annotation: Any, key: str, backbone: str) -> Any:
    """Convert the text of one key."""
    if annotation is _Unknown:
        return str(text)  # the model's validation reports the unknown key
    members = _members(annotation)
    if NoneType in members and (text == _NULL or (text == "" and Path in members)):
        return None
    members = [member for member in members if member is not NoneType]
    if not members or Any in members:
        return parse_value(text, key)
    if all(map(_is_text, members)):
        return str(text)
    if text.lstrip()[:1] in ("[", "{"):
        structure = _structure(text)
        if structure is not None and any(_takes(member, structure) for member in members):
            return typed(structure, annotation, key, backbone=backbone)
    return _scalar(text, members, key)


def _scalar(text: str, members: Sequence[Any], key: str) -> Any:
    """Convert a text that is neither a list nor a mapping."""
    if any(map(_is_text, members)):
        return str(text)
    if any(map(_is_model, members)) and float not in members:
        return str(text)  # a shorthand such as `lm=facebook/opt-2.7b`
    if any(_is_sequence(member) and all(map(_is_text, _members(_items_of(member, 1)[0]))) for member in members):
        return [] if text == _NULL else [str(text)]
    return parse_value(text, key)


def _members(annotation: Any) -> list[Any]:
    """Return the types of an annotation's values; several for a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _is_text(member: Any) -> bool:
    if get_origin(member) is Literal:
        return all(isinstance(choice, str) for choice in get_args(member))
    return isinstance(member, type) and issubclass(member, str | Path)


def _is_sequence(member: Any) -> bool:
    return get_origin(member) in (tuple, list, set, frozenset)


def _takes(member: Any, structure: Any) -> bool:
    """Return whether a type accepts a value of the structure: a list or a mapping."""
    if isinstance(structure, list):
        return _is_sequence(member) or member in (tuple, list)
    return _is_model(member) or get_origin(member) in (dict, Mapping) or member is dict


def _items_of(annotation: Any, length: int) -> list[Any]:
    """Return the annotations of a sequence's `length` items."""
    for member in _members(annotation):
        arguments = get_args(member)
        if _is_sequence(member) and arguments:
            fixed = get_origin(member) is tuple and arguments[-1] is not Ellipsis
            items = list(arguments) if fixed else [arguments[0]] * length
            return [*items, *[Any] * length][:length]
    return [Any] * length


def _fields_of(value: Mapping[str, Any], annotation: Any, key: str, backbone: str) -> Callable[[str], Any]:
    """Return a function from the keys of a mapping to their annotations."""
    for member in _members(annotation):
        if get_origin(member) in (dict, Mapping):
            return lambda name: get_args(member)[1]
        if _is_model(member):
            fields = {name: one.annotation for name, one in member.model_fields.items()}
            if member.model_config.get("extra") == "allow" and "name" in value:
                fields |= _options_of("method" if key == "method" else "task", str(value["name"]), backbone)
            return lambda name: fields.get(name, _Unknown)
    return lambda name: annotation if annotation is _Unknown else Any


def _options_of(part: str, name: str, backbone: str) -> dict[str, Any]:
    """Return the annotations of a method's or task's own keys."""
    kind = METHODS.get(backbone, "methods") if part == "method" else "tasks"
    owner = getattr(leaf(kind, name).module, part.upper())
    return {key: one.annotation for key, one in owner.Options.model_fields.items()}


def _structure(text: str) -> Any:
    """Parse a YAML list or mapping and leave unquoted scalars as `Given` text; return None if the YAML is invalid."""
    try:
        return _plain(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return None


def _plain(node: yaml.Node | None) -> Any:
    match node:
        case yaml.SequenceNode():
            return [_plain(item) for item in node.value]
        case yaml.MappingNode():
            return {str(_plain(key)): _plain(item) for key, item in node.value}
        case yaml.ScalarNode(style=None):
            return Given(node.value)
        case yaml.ScalarNode():
            return node.value  # quoted
    return None


def _holds_given(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Given) or any(map(_holds_given, inside))


def _shorthand(part: str, parent: str) -> str | None:
    """Return the key that a string at `part` is a shorthand for; None if it is a value."""
    if part == "init_from":
        return "run"
    if part == "lm" or parent == "encoders":
        return "id"
    return "name" if part in ("method", "task") or parent == "parts" else None


def _number(value: Any) -> Any:
    """Convert text such as `2e-5`, which YAML 1.1 reads as a string, to a number if possible."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
