"""The spliced backbone: frozen encoders and a frozen decoder-only LM, joined at slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.config.recipe import Recipe
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import FeatureStore, cache_folder
from perceptune.encoders.cache.uncached import LiveFeatures
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.fsdp import shard
from perceptune.lm.generation.generate import StreamCallback
from perceptune.lm.kernels.optimize import optimize_frozen
from perceptune.lm.text_state_cache import TextStates
from perceptune.methods.slots.base import Method
from perceptune.models import likelihood
from perceptune.models.base import AdaptedModel
from perceptune.models.batch import Batch, FrozenPart
from perceptune.models.naming_start import fit_to_answers
from perceptune.models.text_format import TextFormat, Tokens, first_target
from perceptune.types import Decoding, Features, Sample, Slots
from perceptune.utils.devices import move
from perceptune.utils.fsdp_settings import FSDPSettings


class SlotModel(AdaptedModel):
    """A frozen LM with slots, its encoders, and a method that says what enters where."""

    method: Method

    def __init__(
        self,
        recipe: Recipe,
        lm: FrozenLM,
        encoders: Mapping[str, Encoder],
        method: Method,
        text: TextFormat | None,
    ) -> None:
        super().__init__(recipe, encoders, _stores(recipe, encoders, method), text)
        self.lm = lm
        self.method = method
        folder = cache_folder(recipe.cache.dir) if recipe.cache.features == "disk" else None
        self.text_states = TextStates(
            lm, method.first_layer, recipe.train.text_memory_mb, folder=folder, disk_megabytes=recipe.cache.text_disk_mb
        )
        self.use_reference_path = (
            False  # True: run every layer on every text, the slow path that the fast one must equal
        )
        self.may_reuse_texts = True  # False where every process must run the same blocks at each step
        method.attach(lm)

    @property
    def device(self) -> torch.device:
        return self.lm.device

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
            self.use_reference_path = config.frozen_dropout == "official"  # dropped-out states must not be reused
            # What one process remembers must not change which blocks it runs, when others hold parts of them.
            self.may_reuse_texts = not sharded
        if not sharded:
            compiled = training and config.compile
            optimize_frozen(self.lm, self.method.first_layer, config.packed_memory_mb, compiled=compiled)

    def _require_shardable(self) -> None:
        if self.method.trains_lm:
            raise UserError("accelerate: FSDP shards frozen weights only: leave out `lm` under `method.unfreeze`")

    def _shard(self, settings: FSDPSettings, device: torch.device) -> None:
        shard(self.lm, settings, self.method.first_layer, device)

    def fit_to_answers(self, samples: Sequence[Sample]) -> None:
        fit_to_answers(self.method, self.lm, self.text, self.stores, samples)

    def set_dropout(self, *, on: bool) -> None:
        self.method.train(on)
        self.lm.model.train(on and self.recipe.train.frozen_dropout == "official")

    def precompute_texts(self, texts: Iterable[tuple[int, ...]], uses: int, *, rank: int = 0, world: int = 1) -> None:
        self.text_states.precompute(texts, uses, rank=rank, world=world)

    def refresh_texts(self) -> None:
        self.text_states.refresh()

    def layer_info(self) -> dict[str, int]:
        return {"first_layer": self.method.first_layer, "lm_layers": self.lm.n_layers}

    def run_info(self) -> dict[str, Any]:
        return {
            "texts": self.text_states.kept if self.reuses_texts else "not reused",
            "split_disabled": self.lm.split_disabled,
        }

    def tokens(self, samples: Sequence[Sample], targets: Sequence[str] | None = None) -> Tokens:
        if targets is None:
            targets = [first_target(sample) for sample in samples]
        pairs = [self.text.training_ids(s, t) for s, t in zip(samples, targets, strict=True)]
        return self.text.pad_left([ids for ids, _ in pairs], [n for _, n in pairs])

    def forward(self, batch: Batch) -> Tensor:
        """Logits (N, vocab) at the N positions that predict a supervised token, row by row."""
        logits: Tensor = self.lm(**self._arguments(batch))
        return logits

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy summed over the supervised tokens, and their number."""
        targets = batch.tokens.input_ids[:, 1:][batch.tokens.supervised[:, 1:]]
        return self.lm.loss(**self._arguments(batch), targets=move(targets, self.lm.device)), len(targets)

    @property
    def reuses_texts(self) -> bool:
        """Whether layers below the method's first one are run once per distinct text."""
        return self.method.first_layer > 0 and self.may_reuse_texts and not self.use_reference_path

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        """What the LM is called with."""
        device = self.lm.device
        ids, mask = batch.tokens.input_ids, batch.tokens.attention_mask
        layer = self.method.first_layer
        return {
            "input_ids": move(ids, device),
            "attention_mask": move(mask, device),
            "slots": self.method.build_slots(_moved(batch.features, device), ids.shape[0]),
            "keep": nn.functional.pad(batch.tokens.supervised[:, 1:], (0, 1)),
            "text_states": (layer, self.text_states.get(ids, mask)) if self.reuses_texts else None,
            "use_reference_path": self.use_reference_path,
        }

    def generate(
        self, samples: Sequence[Sample], decoding: Decoding, *, seeds: Sequence[int] | None = None,
        watch: StreamCallback | None = None,
    ) -> list[list[int]]:  # fmt: skip
        return self.generate_tokens(*self.prompts(samples), samples, decoding, seeds=seeds, watch=watch)

    def prompts(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, list[Slots]]:
        """Ids and mask (B, T) of the prompts, and their slots."""
        tokens = self.text.pad_left([self.text.prompt_ids(sample) for sample in samples])
        device = self.lm.device
        slots = self.method.build_slots(_moved(self.encode(samples), device), len(samples))
        return move(tokens.input_ids, device), move(tokens.attention_mask, device), slots

    def generate_tokens(
        self, ids: Tensor, mask: Tensor, slots: Sequence[Slots], samples: Sequence[Sample], decoding: Decoding, *,
        seeds: Sequence[int] | None = None, watch: StreamCallback | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """New tokens of each row. `seeds` stand for `decoding.seed`, row by row."""
        return self.lm.generate(
            ids, mask, slots, decoding, eos=self.text.eos, pad=self.text.pad, watch=watch,
            seeds=self.seeds_of(samples, decoding, seeds),
        )  # fmt: skip

    @torch.no_grad()
    def token_logprobs(
        self, samples: Sequence[Sample], *, decoding: Decoding | None = None
    ) -> list[list[tuple[str, float]]]:
        return likelihood.token_logprobs(self, samples, decoding or Decoding(**self.recipe.decode.model_dump()))

    @torch.no_grad()
    def rank(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, normalize: bool = False,
        batch_size: int | None = None,
    ) -> list[list[float]]:  # fmt: skip
        size = batch_size or self.recipe.eval.batch_size
        return likelihood.rank(self, samples, candidates, normalize=normalize, batch_size=size)

    @torch.no_grad()
    def loglikelihood(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, batch_size: int | None = None
    ) -> list[list[tuple[float, bool]]]:
        size = batch_size or self.recipe.eval.batch_size
        return likelihood.loglikelihood(self, samples, candidates, batch_size=size)


def _moved(features: Mapping[str, Features], device: torch.device) -> dict[str, Features]:
    return {name: Features(move(f.values, device), f.present) for name, f in features.items()}


def _stores(recipe: Recipe, encoders: Mapping[str, Encoder], method: Method) -> dict[str, FeatureStore]:
    """Where features come from: kept ones, or computed with gradients if the encoders are trained."""
    if not method.trains_encoders:
        return feature_stores(recipe, encoders, method)
    return {
        name: LiveFeatures(encoder, method.levels(name), method.tokens(name), views=recipe.encoders[name].views)
        for name, encoder in encoders.items()
    }


def feature_stores(recipe: Recipe, encoders: Mapping[str, Encoder], method: Method) -> dict[str, FeatureStore]:
    """A store for each encoder, with the levels and tokens that the method wants."""
    stores = {}
    for name, encoder in encoders.items():
        config = recipe.encoders[name]
        stores[name] = FeatureStore(
            encoder, method.levels(name), method.tokens(name), recipe.cache,
            megabytes=recipe.train.feature_memory_mb, views=config.views,
        )  # fmt: skip
    return stores
