"""The conversation in a request's messages: earlier turns, the question, and the places of media in their texts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from perceptune.data.conversations import group_media, join_texts, marks_in_text
from perceptune.errors import nearest
from perceptune.serving import schema
from perceptune.serving.errors import ApiError
from perceptune.serving.runs import ServedRun
from perceptune.serving.schema import InputAudioPart, Part, TextPart
from perceptune.types import Mark, Medium, Message, Sample

CODE = "unsupported_conversation"
_PLURALS = {"image": "images", "audio": "audio files", "video": "videos"}


@dataclass(frozen=True)
class Attached:
    """A medium of a conversation that has not been read yet."""

    part: Part
    modality: str
    name: str  # in errors: "the image", or "image 2 of message 3" if there are several


@dataclass(frozen=True)
class Conversation:
    """The user's last message and what comes before it; `attached` are the media of all turns in their order."""

    prompt: str
    marks: tuple[Mark, ...] = ()
    history: tuple[Message, ...] = ()
    attached: tuple[Attached, ...] = ()

    @property
    def n_characters(self) -> int:
        """Number of characters of all texts together."""
        return len(self.prompt) + sum(len(one.text) for one in self.history)

    def sample(self, media: Sequence[Medium]) -> Sample:
        """Return the conversation as one sample; `media` are the contents of `attached`."""
        given = group_media(zip((one.modality for one in self.attached), media, strict=True))
        marks = marks_in_text(self.marks, self.history)
        return Sample("question", given, self.prompt, marks=marks, history=self.history)


def read_conversation(messages: Sequence[schema.Message]) -> Conversation:
    """Return the conversation of a request. Raises `ApiError` unless user and assistant take turns, the user last.

    System messages stand first and are joined with a blank line; empty ones count as none.
    """
    heard = [(place, one) for place, one in enumerate(messages) if not (_is_system(one) and one.is_empty)]
    n_system = next((i for i, (_, one) in enumerate(heard) if not _is_system(one)), len(heard))
    _require_turns(heard[:n_system], heard[n_system:])
    system = [_read(place, one).text for place, one in heard[:n_system]]
    *earlier, last = [_read(place, one) for place, one in heard[n_system:]]
    history = [Message("system", "\n\n".join(system))] if system else []
    return Conversation(last.text, last.marks, (*history, *earlier), _attached(heard[n_system:]))


def require_answerable(asked: Conversation, run: ServedRun) -> None:
    """Raise `ApiError` for what the run's template or encoders cannot express."""
    counts = Counter(one.modality for one in asked.attached)
    for modality, count in counts.items():
        if modality not in run.max_media:
            known = nearest(modality, run.max_media)
            raise ApiError(400, f"model `{run.name}` takes no {modality}{known}", param="messages", code="no_encoder")
        most = run.max_media[modality]
        if count > most:
            allowed = f"one {modality}" if most == 1 else f"{most} {_PLURALS[modality]}"
            raise _unsupported(
                f"more than {allowed}: {count} in this request, and model `{run.name}` takes {most} "
                f"(`encoders.{modality}.max_media`)"
            )
    if run.model.required_modalities - set(counts):
        raise ApiError(400, f"model `{run.name}` speaks about images only: send one", param="messages")
    _require_template(asked, run)


def _require_template(asked: Conversation, run: ServedRun) -> None:
    has_system = any(one.role == "system" for one in asked.history)
    if not run.takes_history and asked.history:
        parts = [
            *(["a system message"] if has_system else []),
            *(["earlier turns"] if has_turns(asked.history) else []),
        ]
        raise _unsupported(
            f"model `{run.name}` answers single questions: its template has no place for {' and '.join(parts)}, as "
            "`text.template: chat` has"
        )
    if asked.history and (refusal := run.refusal_of([*(one.role for one in asked.history), "user"])):
        raise _unsupported(f"model `{run.name}`: {refusal}")


def has_turns(history: Sequence[Message]) -> bool:
    """Return whether there are earlier turns, beside a system message."""
    return any(one.role != "system" for one in history)


def _is_system(message: schema.Message) -> bool:
    return message.role in ("system", "developer")


def _require_turns(system: Sequence[tuple[int, schema.Message]], turns: Sequence[tuple[int, schema.Message]]) -> None:
    before: schema.Message | None = None
    for place, one in turns:
        if one.role == "tool":
            raise _unsupported("a message of role `tool`: there are no tools", place)
        if _is_system(one):
            raise _unsupported("a system message stands before the first message of the user", place)
        if before is None and one.role == "assistant":
            raise _unsupported("a conversation begins with the user, not with the assistant", place)
        if before is not None and before.role == one.role:
            raise _unsupported(
                f"two messages of role `{one.role}` in a row: user and assistant take turns, so join them into one",
                place,
            )
        before = one
    if before is None or before.role == "assistant":
        last = [*system, *turns][-1:]
        raise _unsupported("a conversation ends with a message of the user", last[0][0] if last else None)


def _read(place: int, message: schema.Message) -> Message:
    """Return a turn's text, its parts joined with line breaks; a medium stands before the text that follows it."""
    if message.content is None:
        where = f"messages.{place}.content"
        raise ApiError(400, f"{where}: is missing: a text, or a list of parts", param=where)
    role = message.role if message.role in ("user", "assistant") else "system"
    if role != "user" and not all(isinstance(part, TextPart) for part in message.content):
        raise _unsupported(f"media belong to messages of the user, not to one of role `{message.role}`", place)
    texts: list[str] = []
    found: list[tuple[int, str]] = []  # number of texts before each medium
    for part in message.content:
        if isinstance(part, TextPart):
            texts.append(part.text)
        else:
            found.append((len(texts), _modality(part)))
    return Message(role, *join_texts(texts, found))


def _attached(turns: Sequence[tuple[int, schema.Message]]) -> tuple[Attached, ...]:
    found = [
        (place, part, _modality(part))
        for place, one in turns for part in one.content or () if not isinstance(part, TextPart)
    ]  # fmt: skip
    total = Counter(modality for _, _, modality in found)
    within: Counter[tuple[int, str]] = Counter()
    attached = []
    for place, part, modality in found:
        within[place, modality] += 1
        several = f"{modality} {within[place, modality]} of message {place + 1}"
        attached.append(Attached(part, modality, several if total[modality] > 1 else f"the {modality}"))
    return tuple(attached)


def _modality(part: Part) -> str:
    return "audio" if isinstance(part, InputAudioPart) else part.type.removesuffix("_url")


def _unsupported(why: str, place: int | None = None) -> ApiError:
    param = "messages" if place is None else f"messages.{place}"
    return ApiError(400, why if place is None else f"{param}: {why}", param=param, code=CODE)
