"""A tokenizer's own chat template, taken apart into the text around the turns of a conversation."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from perceptune.errors import UserError

Part = str | int  # text of the template, or the number of the message whose text stands there

# Private-use characters: no template treats them as anything but text.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")


class ChatTemplate:
    """The template of a tokenizer. Raises `UserError` if it has none."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "text.template: `chat` needs a chat template, and the LM's tokenizer has none: take an LM that was "
                "trained on conversations, or write a template with {prompt}"
            )
        self._tokenizer = tokenizer
        self.parts_of = lru_cache(256)(self._parts_of)
        self.strips = f"\t{_MARK.format(0)}\t" not in self._render(["user"], f"\t{_MARK}\t")  # blanks around a text

    @property
    def takes_system(self) -> bool:
        """Whether a system message reaches the text."""
        try:
            self.parts_of(("system", "user"))
        except UserError:
            return False
        return True

    def after_answer(self) -> str:
        """Return the template's text behind an answer that a question follows."""
        parts = self.parts_of(("user", "assistant", "user"))
        following = parts[parts.index(1) + 1]
        return following if isinstance(following, str) else ""

    def _parts_of(self, roles: tuple[str, ...]) -> tuple[Part, ...]:
        """Return the text of messages with these roles, and of the start of the next answer.

        Raises `UserError` for a conversation that the template refuses, changes or shortens.
        """
        pieces = _MARKS.split(self._render(roles, _MARK))
        parts: list[Part] = [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
        numbers = [part for part in parts if isinstance(part, int)]
        if numbers != list(range(len(roles))):
            lost = next((role for number, role in enumerate(roles) if number not in numbers), "last")
            raise UserError(f"the LM's chat template leaves out the {lost} message, or gives messages in another order")
        if "assistant" in roles:
            parts = self._as_generated(roles, parts)
        return tuple(part for part in parts if part != "")

    def _as_generated(self, roles: Sequence[str], parts: Sequence[Part]) -> list[Part]:
        """Return the parts with the text before the last answer as it was when that was generated.

        Some templates add blanks there afterwards. Raises `UserError` for other differences.
        """
        last = len(roles) - 1 - list(reversed(roles)).index("assistant")
        place = list(parts).index(last)
        before = self.parts_of(tuple(roles[:last]))
        given = [part for part in parts[:place] if part != ""]
        if [*given[:-1], _stripped(given[-1])] != [*before[:-1], _stripped(before[-1])]:
            raise UserError(
                "the LM's chat template writes earlier turns otherwise than the last one, so no conversation can be "
                "continued as it was; use single questions"
            )
        return [*before, *parts[place:]]

    def _render(self, roles: Sequence[str], mark: str) -> str:
        messages = [{"role": role, "content": mark.format(number)} for number, role in enumerate(roles)]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            shown = ", ".join(roles)
            raise UserError(f"the LM's chat template refuses messages of {shown}: {error}") from error
        return str(text)


def _stripped(part: Part) -> Part:
    return part.rstrip() if isinstance(part, str) else part
