"""A conversation with a model: each question is asked after all turns before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from perceptune.data.conversations import group_media, marks_in_text, tagged_history
from perceptune.errors import UserError
from perceptune.lm.generation.prefix_reuse import KnownTexts
from perceptune.models.base import AdaptedModel
from perceptune.models.consensus import require_single
from perceptune.models.run_folder import cleaning_of
from perceptune.models.slots.model import SlotModel
from perceptune.models.slots.turns import generate_turn
from perceptune.types import Decoding, Mark, Medium, Message, Sample
from perceptune.utils.paths import given_path


class Conversation:
    """Turns of a user and a model. `reuse_mb` limits the memory for what earlier turns computed.

    A model whose template has no place for earlier turns answers each question by itself (`keeps_history`).
    Raises `UserError` for a `system` message that the model's template does not take.
    """

    def __init__(
        self, model: AdaptedModel, *, system: str | None = None, decoding: Decoding | None = None,
        reuse_mb: float = 256,
    ) -> None:  # fmt: skip
        self.model, self.decoding = model, require_single(decoding or model.decoding, "conversations")
        self.keeps_history = model.text.takes_history
        if system is not None and not model.text.takes_system:
            why = "the LM's chat template leaves it out" if self.keeps_history else "it needs `text.template: chat`"
            raise UserError(f"this run takes no system message: {why}")
        self._clean, self._known = cleaning_of(model), KnownTexts(reuse_mb)
        self._system = [Message("system", system)] if system else []
        self.reset()

    def reset(self) -> None:
        """Forget all turns but the system message."""
        self._turns: list[Message] = list(self._system)
        self._media: list[tuple[str, Medium]] = []

    def ask(self, prompt: str, media: Sequence[tuple[str, Medium | str]] = ()) -> str:
        """Return the answer to a question about `media`, pairs of modality and file, and about those of before.

        Raises `UserError` for a question that does not fit; the conversation then stays as it was.
        """
        marks = tuple(Mark(0, modality) for modality, _ in media)
        new = [(modality, given_path(one) if isinstance(one, str) else one) for modality, one in media]
        seen = [*self._media, *new]
        placed = marks_in_text(marks, self._turns)
        sample = Sample("question", group_media(seen), prompt, marks=placed, history=tuple(self._turns))
        self.model.check_modalities([sample])
        answer = self._clean(self.model.text.decode(self._generate(sample)))
        if self.keeps_history:
            self._media = seen
            self._turns += [Message("user", prompt, marks), Message("assistant", answer)]
        return answer

    def to_row(self) -> dict[str, Any]:
        """Return the turns in the form that task `messages` reads, wherever the file with them will lie."""
        row: dict[str, Any] = {"messages": tagged_history(Sample("", {}, "", history=tuple(self._turns)))}
        for modality in dict.fromkeys(name for name, _ in self._media):
            row[f"{modality}s"] = [_located(medium) for name, medium in self._media if name == modality]
        return row

    def _generate(self, sample: Sample) -> list[int]:
        if self.keeps_history and self.model.supports_continuous_batching:
            return generate_turn(cast(SlotModel, self.model), sample, self.decoding, self._known)
        return self.model.generate([sample], self.decoding)[0]


def _located(medium: Medium) -> str:
    """Return the name of a file as readers in any folder find it."""
    return str(medium.absolute() if isinstance(medium, Path) else medium)
