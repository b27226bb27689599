"""Conversations with several media: which turn each of them belongs to, and the rows of their answers."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from perceptune.data.records import Record, short
from perceptune.data.tasks._chat_rows import Turn
from perceptune.data.tasks._marks import mismatch, order_of
from perceptune.data.tasks._tags import Cut, check_tags, cut_tags, number_tags
from perceptune.types import Mark, Message

MARKS, HISTORY = "perceptune:marks", "perceptune:history"  # keys of a converted row
_PLACE = "conversation"


class Place(NamedTuple):
    """The place of a file in a text."""

    at: int
    modality: str
    file: str


class Said(NamedTuple):
    """A turn without tags."""

    role: str  # `system`, `user` or `model`
    text: str
    is_trained: bool
    places: Sequence[Place] = ()

    def join(self, other: "Said") -> "Said":
        """Return this turn and the next one of the same role as one."""
        return self._replace(
            text=f"{self.text}\n{other.text}", is_trained=self.is_trained and other.is_trained,
            places=[*self.places, *_moved(other.places, len(self.text) + 1)],
        )  # fmt: skip


class Talk(NamedTuple):
    """A conversation with its media at their turns."""

    turns: Sequence[Said]
    has_tags: bool  # False = all media stand in front of the first question

    @property
    def files(self) -> dict[str, list[str]]:
        """Return the files of each modality in order."""
        return _files(place for turn in self.turns for place in turn.places)


def place_in_turns(record: Record, turns: Sequence[Turn], beside: Mapping[str, list[str]]) -> Talk:
    """Return the conversation of turns that may name media themselves; `beside` are those listed beside the turns.

    A medium belongs to the turn of its tag, without one to the turn that names it, else to the first question. Raises
    `RowError` for tags of a modality that are neither none nor one for each medium.
    """
    asked = [index for index, turn in enumerate(turns) if turn.role != "model"]  # in answers tags are text
    own = [{modality: [*files] for modality, files in turn.media.items()} for turn in turns]
    pool = {
        modality: files
        for modality, files in beside.items()
        if files != [file for some in own for file in some.get(modality, ())]  # else each is named twice
    }
    known = {modality: pool.get(modality, []) for modality in {*pool, *(key for some in own for key in some)}}
    tagged = number_tags(record, [turns[index].text for index in asked], known)
    for name in tagged.named:
        own[asked[name.text]].setdefault(name.modality, []).append(name.file)
    given = sorted({*known, *(name.modality for name in tagged.named)})
    if "image" not in given:
        check_tags(record, tagged.texts, ())
    cut = dict(zip(asked, (cut_tags(text, given) for text in tagged.texts), strict=True))
    placing = _Placing(record, {index: tags for index, (_, tags) in cut.items()}, own, pool)
    for modality in given:
        placing.place(modality)
    first = next((index for index in asked if turns[index].role == "user"), asked[0] if asked else 0)
    said = []
    for index, turn in enumerate(turns):
        text = cut[index][0] if index in cut else turn.text.strip()
        said.append(Said(turn.role, text, turn.is_trained, placing.of_turn(index, is_first=index == first)))
    return Talk(said, placing.has_tags)


class _Placing:
    """Gives each medium of a conversation its place."""

    def __init__(
        self, record: Record, tags: Mapping[int, Sequence[Cut]], own: Sequence[Mapping[str, list[str]]],
        pool: Mapping[str, list[str]],
    ) -> None:  # fmt: skip
        self._record, self._tags, self._own, self._pool = record, tags, own, pool
        self._of_tag: dict[tuple[int, int], Place] = {}  # turn and index of the tag in it
        self._in_front: dict[int, list[Place]] = {}  # of turns that name media without tags
        self._first: list[Place] = []
        self.has_tags = False

    def of_turn(self, index: int, *, is_first: bool) -> list[Place]:
        """Return the places of a turn in order; media without a turn belong to the first question."""
        tags = [self._of_tag.get((index, number)) for number in range(len(self._tags.get(index, ())))]
        return [*(self._first if is_first else ()), *self._in_front.get(index, ()), *(tag for tag in tags if tag)]

    def place(self, modality: str) -> None:
        """Place the media of a modality. Raises `RowError` if tags and media do not match."""
        pool = self._pool.get(modality, [])
        tags = {index: [n for n, tag in enumerate(some) if tag.modality == modality]
                for index, some in self._tags.items()}  # fmt: skip
        named = {index: some[modality] for index, some in enumerate(self._own) if some.get(modality)}
        if len({*pool, *(file for files in named.values() for file in files)}) == 1 and not (
            len(pool) > 1 or any(len(files) > 1 for files in named.values())
        ):
            self._place_one(modality, (pool or next(iter(named.values())))[0], tags, next(iter(named), None))
            return
        total = sum(map(len, tags.values()))
        wrong = mismatch(self._record, total, len(pool) + sum(map(len, named.values())), modality, _PLACE)
        for index, files in named.items():
            own = tags[index]
            if not own:
                self._put_in_front(index, modality, files)
                continue
            if len(own) != len(files):
                raise wrong
            numbers = [self._tags[index][n].number or 0 for n in own]
            ranked = sorted(numbers) if len({*numbers}) == len(numbers) else []
            self._bind(modality, [(index, n) for n in own],
                       [files[ranked.index(number)] for number in numbers] if ranked else files)  # fmt: skip
        free = [(index, n) for index, some in tags.items() if index not in named for n in some]
        if not free:
            self._first += [Place(0, modality, file) for file in pool]
        elif len(free) != len(pool):
            raise wrong
        else:
            numbers_by_turn = [[self._tags[index][n].number for _, n in some]
                               for index, some in groupby(free, key=lambda place: place[0])]  # fmt: skip
            order = order_of(self._record, numbers_by_turn, modality, _PLACE)
            self._bind(modality, free, [pool[index] for index in order])

    def _place_one(self, modality: str, file: str, tags: Mapping[int, Sequence[int]], named: int | None) -> None:
        """Place the only medium of a modality at its first tag, else in the turn `named`; later turns may repeat it."""
        if most := next((len(some) for some in tags.values() if len(some) > 1), 0):
            raise mismatch(self._record, most, 1, modality, "turn")
        first = next(((index, some[0]) for index, some in tags.items() if some), None)
        if first is not None:
            self._bind(modality, [first], [file])
        elif named is not None:
            self._put_in_front(named, modality, [file])
        else:
            self._first.append(Place(0, modality, file))

    def _put_in_front(self, index: int, modality: str, files: Sequence[str]) -> None:
        self._in_front.setdefault(index, []).extend(Place(0, modality, file) for file in files)
        self.has_tags = True  # the turn is known

    def _bind(self, modality: str, tags: Sequence[tuple[int, int]], files: Sequence[str]) -> None:
        self.has_tags = True
        for (index, number), file in zip(tags, files, strict=True):
            self._of_tag[index, number] = Place(self._tags[index][number].at, modality, file)


def merge_beside(record: Record, given: Sequence[tuple[str, list[str]]]) -> dict[str, list[str]]:
    """Return the files of each modality beside the turns. Raises `RowError` for two keys with different ones."""
    found: dict[str, list[str]] = {}
    for modality, files in given:
        earlier = found.get(modality, [])
        if not {*earlier} <= {*files} and not {*files} <= {*earlier}:
            shown = ", ".join(short(file, 60) for file in dict.fromkeys([*earlier, *files][:3]))
            raise record.error(f"more than one {modality} at two keys ({shown}); several are a list at one key")
        found[modality] = max(earlier, files, key=len)
    return found


def answer_rows(talk: Talk, *, history: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each answer that is trained on: the question after all earlier turns, and their media."""
    texts, places, asked, own = list[str](), list[Place](), False, 0
    for turn in talk.turns:
        if turn.role == "model" and asked and turn.is_trained:
            shown = places if history else [
                place._replace(at=max(place.at - own, 0)) for place in places
            ]  # fmt: skip
            yield {**_media_values(_files(shown)), "prompt": "\n".join(texts if history else texts[-1:]),
                   "targets": turn.text, MARKS: _listed(shown) if talk.has_tags else []}  # fmt: skip
        own = sum(map(len, texts)) + len(texts)
        places += _moved(turn.places, own)
        texts.append(turn.text)
        asked = turn.role != "model"


def whole_row(record: Record, talk: Talk) -> dict[str, Any] | None:
    """Return the row of a whole conversation, up to its last answer that is trained on; None without one.

    Raises `RowError` for a system message that is not the first one, or has media, and for an answer without text.
    """
    turns = [turn for turn in talk.turns if turn.role != "system" or turn.text or turn.places]
    merged: list[Said] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1] = merged[-1].join(turn)
        else:
            merged.append(turn)
    ends = [n for n, turn in enumerate(merged)
            if turn.role == "model" and turn.is_trained and n and merged[n - 1].role == "user"]  # fmt: skip
    if not ends:
        return None
    history, question, answer = merged[: ends[-1] - 1], merged[ends[-1] - 1], merged[ends[-1]]
    for number, turn in enumerate([*history, question]):
        if turn.role == "system" and (number or turn.places):
            what = f"holds {turn.places[0].modality}" if turn.places else "follows other turns"
            raise record.error(f"the system message {what}, which `turns: all` cannot express")
    for turn in history:
        if turn.role == "model" and turn.is_trained and not turn.text:
            raise record.error("an answer of the conversation holds no text", "empty-target")
    places = [place for turn in (*history, question) for place in turn.places]
    is_in_front = not talk.has_tags and not any(turn.places for turn in history)
    return {
        **_media_values(_files(places)), "prompt": question.text, "targets": answer.text,
        MARKS: [] if is_in_front else _listed(question.places),
        HISTORY: [
            [_ROLES[turn.role], turn.text, _listed(turn.places), turn.role == "model" and turn.is_trained]
            for turn in history
        ],
    }  # fmt: skip


_ROLES = {"system": "system", "user": "user", "model": "assistant"}


def marks_in(row: Mapping[str, Any]) -> tuple[Mark, ...]:
    """Return the marks of a converted row."""
    return tuple(Mark(at, modality) for at, modality in row.get(MARKS, ()))


def history_in(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the earlier turns of a converted row."""
    return tuple(
        Message(role, text, tuple(Mark(at, modality) for at, modality in marks), is_target)
        for role, text, marks, is_target in row.get(HISTORY, ())
    )


def _media_values(files: Mapping[str, list[str]]) -> dict[str, Any]:
    return {modality: some if len(some) > 1 else some[0] for modality, some in files.items()} or {"image": None}


def _files(places: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for place in places:
        found.setdefault(place.modality, []).append(place.file)
    return found


def _moved(places: Sequence[Place], by: int) -> list[Place]:
    return [place._replace(at=place.at + by) for place in places]


def _listed(places: Sequence[Place]) -> list[list[Any]]:
    return [[place.at, place.modality] for place in places]
