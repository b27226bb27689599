"""The slot model: frozen encoders and a frozen decoder-only LM, joined at slots."""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.config.recipe import Recipe
from perceptune.data.media.source import content
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import FeatureStore, cache_folder
from perceptune.encoders.cache.uncached import LiveFeatures
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.fsdp import shard
from perceptune.lm.generation.generate import generate
from perceptune.lm.generation.logprobs import SharedTexts, TokenScore, continuation_scores
from perceptune.lm.generation.prefix_reuse import Content, columns_of
from perceptune.lm.kernels.optimize import optimize_frozen
from perceptune.lm.text_state_cache import TextStates
from perceptune.methods.slots.base import Method
from perceptune.models.base import AdaptedModel
from perceptune.models.consensus import require_single
from perceptune.models.sampling_seeds import seeds_of
from perceptune.models.slots.connector_init import fit_to_answers
from perceptune.models.slots.placement import hide_from_earlier_turns, place_in_text, require_one_answer
from perceptune.models.text_format import Batch, FrozenPart, TextFormat, first_target
from perceptune.models.text_rows import Tokens
from perceptune.types import IN_TEXT, Decoding, Features, GenerationRequest, Prompt, Sample, Slots, StreamCallback
from perceptune.utils.distributed import World
from perceptune.utils.fsdp_settings import FSDPSettings
from perceptune.utils.row_store.store import digest_of
from perceptune.utils.tensors import move

_ENOUGH_MB = 2**20  # for the texts of a few steps


class SlotModel(AdaptedModel):
    """A frozen LM with slots, its encoders, and a method that determines what each slot holds."""

    method: Method
    supports_continuous_batching = True

    def __init__(
        self, recipe: Recipe, lm: FrozenLM, encoders: Mapping[str, Encoder], method: Method, text: TextFormat | None
    ) -> None:
        super().__init__(recipe, encoders, _stores(recipe, encoders, method), text)
        self.lm = lm
        self.method = method
        folder = cache_folder(recipe.cache.dir) if recipe.cache.features == "disk" else None
        self.text_states = TextStates(
            lm, method.first_layer, recipe.train.text_memory_mb, folder=folder, disk_megabytes=recipe.cache.text_disk_mb
        )
        self.use_reference_path = False  # True: every layer on every text, the reference for the fast path
        self.may_reuse_texts = True  # False if every process must run the same blocks at each step
        method.attach(lm)

    @property
    def max_positions(self) -> int | None:
        return getattr(self.lm.config, "max_position_embeddings", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.dtype

    @property
    def fingerprint(self) -> str:
        return self.lm.fingerprint

    def frozen_parts(self) -> dict[str, FrozenPart]:
        parts = {"lm": FrozenPart(f"{self.recipe.lm.id} ({type(self.lm.model).__name__})", self.lm)}
        for name, encoder in self.encoders.items():
            parts[f"encoders.{name}"] = FrozenPart(self.recipe.encoders[name].id, encoder)
        return parts

    def setup(self, *, training: bool = False, sharded: bool = False) -> None:
        config = self.recipe.train
        if training:
            self.lm.gradient_checkpointing = config.gradient_checkpointing
            self.use_reference_path = config.frozen_dropout == "official"  # states after dropout must not be reused
            # The cache of one process must not change which blocks it runs if other processes hold shards of them.
            self.may_reuse_texts = not sharded
        if not sharded:
            compiled = training and config.compile
            optimize_frozen(self.lm, self.method.first_layer, config.packed_memory_mb, compiled=compiled)

    def _shard(self, world: World, settings: FSDPSettings) -> None:
        with world.same_on_all_ranks():
            if self.method.trains_lm:
                raise UserError("accelerate: FSDP shards frozen weights only: leave out `lm` under `method.unfreeze`")
        self.encoders.to(world.device)
        self.method.to(world.device)
        shard(self.lm, settings, self.method.first_layer, world.device)

    def fit_to_answers(self, samples: Sequence[Sample]) -> None:
        fit_to_answers(self.method, self.lm, self.text, self.stores, samples)

    def set_dropout(self, *, on: bool) -> None:
        self.method.train(on)
        self.lm.model.train(on and self.recipe.train.frozen_dropout == "official")

    def precompute_texts(self, texts: Iterable[tuple[int, ...]], uses: int, *, rank: int = 0, world: int = 1) -> None:
        self.text_states.precompute(texts, uses, rank=rank, world=world)

    def count_texts(self, texts: Iterable[tuple[int, ...]], uses: int) -> int | None:
        return self.text_states.count(texts, uses)

    @contextmanager
    def trying_texts(self) -> Iterator[Callable[[Iterable[tuple[int, ...]]], int]]:
        own, self.text_states = self.text_states, TextStates(self.lm, self.method.first_layer, _ENOUGH_MB)
        self.text_states.recompute()

        def keep(texts: Iterable[tuple[int, ...]]) -> int:
            distinct = set(texts) if self.reuses_texts else set()
            self.text_states = TextStates(self.lm, self.method.first_layer, _ENOUGH_MB)
            self.text_states.precompute(distinct, sys.maxsize)
            return len(distinct)

        try:
            yield keep
        finally:
            self.text_states = own

    def refresh_texts(self) -> None:
        self.text_states.refresh()

    def layer_info(self) -> dict[str, int]:
        return {"first_layer": self.method.first_layer, "lm_layers": self.lm.n_layers}

    def run_info(self) -> dict[str, Any]:
        return {
            "texts": self.text_states.kept if self.reuses_texts else "not reused",
            "split_disabled": self.lm.capabilities.split_disabled_reason,
        }

    def tokens(self, samples: Sequence[Sample], targets: Sequence[str] | None = None) -> Tokens:
        if targets is None:
            targets = [first_target(sample) for sample in samples]
        return self.text.pad_rows([self.text.training_row(s, t) for s, t in zip(samples, targets, strict=True)])

    def check_modalities(self, samples: Sequence[Sample]) -> None:
        super().check_modalities(samples)
        for sample in samples if self.method.slots_see_text else ():
            require_one_answer(sample)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (N, vocab) at the N positions that predict a supervised token, row by row."""
        tokens, device = batch.tokens, self.device
        below = self.text_states.look_up(tokens.input_ids, tokens.attention_mask) if self.reuses_texts else None
        logits: Tensor = self.lm(
            move(tokens.input_ids, device), move(tokens.attention_mask, device), self._slots(batch),
            keep=_predicting(tokens), use_reference_path=self.use_reference_path, text_states=below,
        )  # fmt: skip
        return logits

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the cross-entropy summed over the supervised tokens, and their number."""
        tokens = batch.tokens
        targets = tokens.input_ids[:, 1:][tokens.supervised[:, 1:]]
        loss = self.lm.loss(
            tokens.input_ids, tokens.attention_mask, self._slots(batch), keep=_predicting(tokens), targets=targets,
            text_states=self.text_states.look_up if self.reuses_texts and batch.weights is None else None,
            weights=batch.weights, use_reference_path=self.use_reference_path,
        )  # fmt: skip
        return loss, len(targets)

    @property
    def reuses_texts(self) -> bool:
        """Whether layers below the method's first one are run once per distinct text."""
        return self.method.first_layer > 0 and self.may_reuse_texts and not self.use_reference_path

    def _slots(self, batch: Batch) -> list[Slots]:
        return self.arrange_slots(batch.tokens, batch.features)

    def arrange_slots(self, tokens: Tokens, features: Mapping[str, Features]) -> list[Slots]:
        """Return the method's slots for these texts, in front of them or at their places in them."""
        slots = self.method.build_slots(_moved(features, self.device), len(tokens.input_ids))
        return place_in_text(slots, tokens) if self.method.is_in_text else hide_from_earlier_turns(slots, tokens)

    def generate(self, samples: Sequence[Sample], decoding: Decoding, **options: Any) -> list[list[int]]:
        return generate(self.lm, self.request(samples, decoding, **options))

    def request(
        self, samples: Sequence[Sample], decoding: Decoding, *, seeds: Sequence[int] | None = None,
        callback: StreamCallback | None = None, num_return_sequences: int = 1,
        features: Mapping[str, Features] | None = None,
    ) -> GenerationRequest:  # fmt: skip
        """Return the LM's request of `generate`, which has the same arguments."""
        return GenerationRequest(
            self.prompt(samples, features), decoding, self.text.eos, self.text.pad,
            seeds_of(self.text, samples, decoding, seeds, num_return_sequences), callback, num_return_sequences,
        )  # fmt: skip

    def prompt(self, samples: Sequence[Sample], features: Mapping[str, Features] | None = None) -> Prompt:
        """Return the token ids of the prompts and their slots, on the LM's device."""
        tokens, device = self.text.pad_rows([self.text.prompt_row(sample) for sample in samples]), self.device
        slots = self.arrange_slots(tokens, self.encode(samples) if features is None else features)
        return Prompt(move(tokens.input_ids, device), move(tokens.attention_mask, device), slots)

    def content_of(self, sample: Sample) -> Content:
        """Return what the keys and values of each column of a prompt depend on, for `KnownTexts`."""
        row = self.text.prompt_row(sample)
        media = {
            (modality, order): digest_of(content(medium))
            for modality in sample.media
            for order, medium in enumerate(sample.list_media(modality))
        }
        seen: dict[int, list[Hashable]] = {}  # column -> media that are first seen there
        columns = [place for place, token in enumerate(row.ids) if token == IN_TEXT]
        for modality, order in row.in_text:
            seen[columns[0]] = [(modality, media[modality, order])]
            columns = columns[self.text.slots_in_text[modality] :]
        for (modality, order), digest in media.items() if not self.method.is_in_text else ():
            start = row.turns[modality][order] if modality in row.turns else 0
            seen.setdefault(start, []).append((modality, digest))
        return Content(columns_of(row.ids, seen), media)

    @torch.no_grad()
    def token_logprobs(
        self, samples: Sequence[Sample], *, decoding: Decoding | None = None
    ) -> list[list[tuple[str, float]]]:
        request = self.request(samples, require_single(decoding or self.decoding, "log-probabilities of tokens"))
        limits = request.decoding.max_new_tokens_per_row(request.prompt.mask).tolist()
        rows = generate(self.lm, request)
        ended = [row + [request.eos] * (len(row) < limit) for row, limit in zip(rows, limits, strict=True)]
        scores = continuation_scores(self.lm, request.prompt, [[row] for row in ended])
        return [
            [(self.text.token(token), score.logprob) for token, score in zip(row, own, strict=True)]
            for row, [own] in zip(ended, scores, strict=True)
        ]

    @torch.no_grad()
    def rank(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, normalize: bool = False,
        batch_size: int | None = None,
    ) -> list[list[float]]:  # fmt: skip
        return [
            [_sum(scores) / (len(scores) if normalize else 1) for scores in own]
            for own in self._scored(samples, candidates, batch_size)
        ]

    @torch.no_grad()
    def loglikelihood(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, batch_size: int | None = None
    ) -> list[list[tuple[float, bool]]]:
        return [
            [(_sum(scores), all(token.is_greedy for token in scores)) for scores in own]
            for own in self._scored(samples, candidates, batch_size)
        ]

    def _scored(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], batch_size: int | None
    ) -> Iterator[list[list[TokenScore]]]:
        """Yield the token scores of each sample's candidates.

        Samples with the same prompts, as of one task with classes, share the layers that no medium enters.
        """
        repeats = 2 * len({sample.prompt for sample in samples}) <= len(samples)
        shared = SharedTexts(self.lm, self.method.first_layer) if repeats and self.reuses_texts else None
        for part in _portions([len(own) for own in candidates], batch_size or self.recipe.eval.batch_size):
            rows, targets = list(samples[part]), []
            for sample, own in zip(rows, candidates[part], strict=True):
                for answer in own:
                    self.text.require_fit(sample, answer)
                targets.append([self.text.target_ids(answer) for answer in own])
            yield from continuation_scores(self.lm, self.prompt(rows), targets, shared=shared)


def _predicting(tokens: Tokens) -> Tensor:
    """Mark the columns that predict a supervised token: (B, T) bool."""
    return nn.functional.pad(tokens.supervised[:, 1:], (0, 1))


def _sum(scores: Sequence[TokenScore]) -> float:
    return sum(token.logprob for token in scores)


def _portions(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield consecutive slices whose sizes add up to at most `limit`; a single larger item gets a slice of its own."""
    start, total = 0, 0
    for end, size in enumerate(sizes):
        if end > start and total + size > limit:
            yield slice(start, end)
            start, total = end, 0
        total += size
    if len(sizes) > start:
        yield slice(start, len(sizes))


def _moved(features: Mapping[str, Features], device: torch.device) -> dict[str, Features]:
    return {name: replace(f, values=move(f.values, device)) for name, f in features.items()}


def _stores(recipe: Recipe, encoders: Mapping[str, Encoder], method: Method) -> dict[str, FeatureStore]:
    """Return the sources of features: caches, or encoders run with gradients if they are trained."""
    if not method.trains_encoders:
        return feature_stores(recipe, encoders, method)
    return {
        name: LiveFeatures(encoder, method.levels(name), method.tokens(name), views=recipe.encoders[name].views)
        for name, encoder in encoders.items()
    }


def feature_stores(recipe: Recipe, encoders: Mapping[str, Encoder], method: Method) -> dict[str, FeatureStore]:
    """Return a store for each encoder, with the levels and tokens that the method uses."""
    stores = {}
    for name, encoder in encoders.items():
        config = recipe.encoders[name]
        stores[name] = FeatureStore(
            encoder, method.levels(name), method.tokens(name), recipe.cache,
            megabytes=recipe.train.feature_memory_mb, views=config.views,
        )  # fmt: skip
    return stores
