"""States of words in the LM, and a loss that draws the slots of a medium to those of the words of its answers.

A slot's state is compared with what the LM itself has at that layer when it reads a word, so that maps start where
the LM's later layers can read them, without a pass through the LM in any step.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.text_state_cache import GROUP
from perceptune.methods.parts.word_grounding import grounding_loss
from perceptune.models.slots.model import SlotModel
from perceptune.types import Sample, Slots

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
LEAST = 2  # answers that a word is in
MOST_WORDS = 5000  # the most frequent ones
# Of English: they name nothing that can be seen. In other languages their document frequency has to be enough.
_FUNCTION_WORDS = (
    "a about after all also an and another are as at be been being but by can do does for from had has have he her him "
    "his i in into is it its no nor not of off on onto or other out over she some that the their them there these they "
    "this those through to towards up was were what when where which while who whose will with yes you"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

Answer = tuple[Sample, str]  # a sample, and one of its targets


def content_words(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the words of a text that name something, in lower case, each with its first character and its end."""
    for found in WORD.finditer(text):
        word = found.group().lower()
        if word not in FUNCTION_WORDS:
            yield word, found.start(), found.end()


def find_words(samples: Iterable[Sample], occurrences: int) -> dict[str, list[Answer]]:
    """Return the words of the samples' targets in the order of the alphabet, each with the first answers that have it.

    Raises `UserError` if there are fewer than two words.
    """
    counts: Counter[str] = Counter()
    answers: dict[str, list[Answer]] = {}
    for sample in samples:
        for target in sample.targets:
            for word in dict.fromkeys(word for word, *_ in content_words(target)):
                counts[word] += 1
                if len(own := answers.setdefault(word, [])) < occurrences:
                    own.append((replace(sample, media={}, marks=()), target))
    common = sorted((word for word, n in counts.items() if n >= LEAST), key=lambda word: (-counts[word], word))
    if len(common) < 2:
        raise UserError(
            f"train.pretrain_words: needs at least two content words that {LEAST} training answers have; "
            f"{len(common)} found"
        )
    return {word: answers[word] for word in sorted(common[:MOST_WORDS])}


@dataclass(frozen=True)
class WordTargets:
    """The LM's states of words at the layers that slots enter, without what all words share."""

    numbers: Mapping[str, int]
    states: Mapping[int, Tensor]  # layer -> (V, d) float32

    def loss(self, slots: Sequence[Slots], answers: Sequence[str], temperature: float) -> Tensor | None:
        """Return the mean of `grounding_loss` over media and layers; `answers` are those of the rows.

        None if no row has both a medium and a word.
        """
        rows = [
            {self.numbers[word] for word, *_ in content_words(answer) if word in self.numbers} for answer in answers
        ]
        losses = []
        for slot in slots:
            present = slot.present.nonzero().flatten().tolist()
            words = sorted(set().union(*(rows[row] for row in present)))
            if not words:
                continue
            own = torch.tensor([[float(word in rows[row]) for word in words] for row in present])
            for layer, states in self.states.items():
                tokens = slot.states[layer][present].float()
                losses.append(grounding_loss(tokens, states[words], own.to(tokens.device), temperature))
        return torch.stack(losses).mean() if losses else None


@torch.no_grad()
def word_targets(model: SlotModel, found: Mapping[str, Sequence[Answer]]) -> WordTargets:
    """Return the mean state of each word's tokens over its occurrences in these answers, less that of all words."""
    numbers = {word: number for number, word in enumerate(found)}
    wanted: dict[tuple[int, ...], set[str]] = {}  # by the tokens of a text
    lengths: dict[tuple[int, ...], int] = {}  # of the answer at its end
    for word, answers in found.items():
        for sample, target in answers:
            ids = tuple(model.text.training_row(sample, target).ids)
            wanted.setdefault(ids, set()).add(word)
            lengths[ids] = len(model.text.target_ids(target))
    layers = sorted(set(model.method.entries()))
    sums = {layer: torch.zeros(len(numbers), model.lm.hidden_size, device=model.device) for layer in layers}
    counts = torch.zeros(len(numbers), 1, device=model.device)
    in_order = sorted(wanted, key=lambda ids: (len(ids), ids))
    for start in range(0, len(in_order), GROUP):
        texts = in_order[start : start + GROUP]
        tokens = model.text.pad_left(texts)
        states = dict(_states_at(model, tokens.input_ids, tokens.attention_mask, layers))
        for row, ids in enumerate(texts):
            for word, columns in _columns_of_words(model, ids[-lengths[ids] :]):
                if word not in wanted[ids]:
                    continue
                counts[numbers[word]] += 1
                for layer in layers:
                    sums[layer][numbers[word]] += states[layer][row, columns].float().mean(0)
    means = {layer: total / counts for layer, total in sums.items()}
    return WordTargets(numbers, {layer: mean - mean.mean(0) for layer, mean in means.items()})


def _columns_of_words(model: SlotModel, answer: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Yield the content words of an answer's tokens with their columns, counted from the end of the text."""
    ends = [len(model.text.decode(answer[:count])) for count in range(len(answer) + 1)]
    for word, start, end in content_words(model.text.decode(answer)):
        columns = [k - len(answer) for k, (first, last) in enumerate(pairwise(ends)) if first < end and last > start]
        if columns:
            yield word, columns


def _states_at(model: SlotModel, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield the states (B, T, d) of texts at the input of each layer, in order; each layer below runs once."""
    known = model.text_states.look_up(ids, mask) if model.reuses_texts else None
    ids, mask = ids.to(model.device), mask.to(model.device)
    for layer in layers:
        if known is None or known[0] < layer:
            run = partial(model.lm, ids, mask, text_states=known)
            known = layer, model.lm.states_reached(layer, run)[:, -ids.shape[1] :]
        yield known
