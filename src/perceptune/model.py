"""A frozen LM with a method and its encoders: loss for training, `answer` for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from perceptune import likelihood
from perceptune.config import Recipe
from perceptune.encoders.base import Encoder
from perceptune.errors import UserError, nearest
from perceptune.features import FeatureStore, cache_folder, feature_stores
from perceptune.generation import Watch
from perceptune.live import LiveFeatures
from perceptune.lm import FrozenLM
from perceptune.media import MediaError, content
from perceptune.methods.base import Method
from perceptune.store import digest_of
from perceptune.text import TextFormat, Tokens
from perceptune.textstates import TextStates
from perceptune.types import Decoding, Features, Medium, Sample, Slots


@dataclass(frozen=True)
class Batch:
    """Texts with the encoder features of their media."""

    tokens: Tokens
    features: Mapping[str, Features]

    @property
    def n_tokens(self) -> int:
        """Supervised tokens, by which a loss sum is divided."""
        return int(self.tokens.supervised[:, 1:].sum())

    @property
    def n_samples(self) -> int:
        """Rows."""
        return len(self.tokens.input_ids)


class AdaptedModel(nn.Module):
    """What `perceptune.build` and `perceptune.load` return. Trained: `method.parameters()`, nothing else."""

    def __init__(
        self,
        recipe: Recipe,
        lm: FrozenLM,
        encoders: Mapping[str, Encoder],
        method: Method,
        text: TextFormat | None,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.lm = lm
        self.encoders = nn.ModuleDict(dict(encoders))
        self.method = method
        self._text = text
        self.stores = _stores(recipe, encoders, method)
        folder = cache_folder(recipe.cache.dir) if recipe.cache.features == "disk" else None
        self.text_states = TextStates(
            lm, method.first_layer, recipe.train.text_memory_mb, folder=folder, disk_megabytes=recipe.cache.text_disk_mb
        )
        self.plain = False  # True: run every layer on every text, the slow path that the fast one must equal
        self.may_reuse_texts = True  # False where every process must run the same blocks at each step
        method.attach(lm)

    @property
    def text(self) -> TextFormat:
        """Template and tokenizer."""
        if self._text is None:
            raise UserError("this model was built from configurations only: it has no tokenizer")
        return self._text

    @text.setter
    def text(self, text: TextFormat) -> None:
        self._text = text

    def prepare(
        self, samples: Sequence[Sample], draws: Sequence[int] | None = None, *, label: str = "features",
        rank: int = 0, world: int = 1, on_broken: Callable[[Sample, Medium, MediaError], None] | None = None,
    ) -> None:  # fmt: skip
        """Computes the features of these samples' media that are not kept yet, so that `encode` only reads them.

        `draws` as in `encode`. Of `world` processes that give the same samples, each computes its share. A broken
        medium is told to `on_broken` with the first sample that has it; without it `MediaError` is raised.
        """
        samples = list(samples)  # what is read lazily, once
        self.check_modalities(samples)
        for modality, store in self.stores.items():
            first: dict[Medium, Sample] = {}
            for sample in samples:
                if modality in sample.media:
                    first.setdefault(sample.media[modality], sample)

            def tell(medium: Medium, error: MediaError, first: dict[Medium, Sample] = first) -> None:
                assert on_broken is not None
                on_broken(first[medium], medium, error)

            store.ensure(
                *_media(samples, modality, draws), label=label, rank=rank, world=world,
                on_broken=tell if on_broken else None,
            )  # fmt: skip

    def collate(
        self, samples: Sequence[Sample], targets: Sequence[str] | None = None, draws: Sequence[int] | None = None
    ) -> Batch:
        """A training batch; `targets` default to each sample's first, `draws` as in `encode`.

        Raises `UserError` naming the sample.
        """
        return Batch(self.tokens(samples, targets), self.encode(samples, draws))

    def tokens(self, samples: Sequence[Sample], targets: Sequence[str] | None = None) -> Tokens:
        """The text part of a batch."""
        if targets is None:
            targets = [_first_target(sample) for sample in samples]
        pairs = [self.text.training_ids(s, t) for s, t in zip(samples, targets, strict=True)]
        return self.text.pad_left([ids for ids, _ in pairs], [n for _, n in pairs])

    def encode(self, samples: Sequence[Sample], draws: Sequence[int] | None = None) -> dict[str, Features]:
        """Features of each modality; rows without that modality hold zeros and are marked absent.

        `draws`, one number a sample, choose augmented views where the recipe has any (`encoders.MODALITY.views`);
        without them the plain media are seen.
        """
        self.check_modalities(samples)
        encoded = {}
        for modality, store in self.stores.items():
            media, chosen = _media(samples, modality, draws)
            if media:
                encoded[modality] = _by_row(samples, modality, store.get(media, chosen))
        return encoded

    def known(self, samples: Sequence[Sample], draws: Sequence[int] | None = None) -> dict[str, Features] | None:
        """What `encode` gives if it need not compute anything, else None. Safe in a thread."""
        features = {}
        for modality, store in self.stores.items():
            media, chosen = _media(samples, modality, draws)
            if media:
                values = store.known(media, chosen)
                if values is None:
                    return None
                features[modality] = _by_row(samples, modality, values)
        return features

    def check_modalities(self, samples: Sequence[Sample]) -> None:
        """Raises `UserError` for a medium that no encoder of this model takes."""
        for sample in samples:
            for modality in sample.media:
                if modality not in self.stores:
                    raise UserError(
                        f"sample `{sample.id}` has `{modality}`, for which this model has no encoder"
                        f"{nearest(modality, self.stores)}"
                    )

    def forward(self, batch: Batch) -> Tensor:
        """Logits (N, vocab) at the N positions that predict a supervised token, row by row."""
        logits: Tensor = self.lm(**self._arguments(batch))
        return logits

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy summed over the supervised tokens, and their number."""
        targets = batch.tokens.input_ids[:, 1:][batch.tokens.supervised[:, 1:]]
        return self.lm.loss(**self._arguments(batch), targets=targets.to(self.lm.device)), len(targets)

    @property
    def reuses_texts(self) -> bool:
        """Whether layers below the method's first one are run once per distinct text."""
        return self.method.first_layer > 0 and self.may_reuse_texts and not self.plain

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        """What the LM is called with."""
        device = self.lm.device
        ids, mask = batch.tokens.input_ids.to(device), batch.tokens.attention_mask.to(device)
        layer = self.method.first_layer
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "slots": self.method.plan(_moved(batch.features, device), ids.shape[0]),
            "keep": nn.functional.pad(batch.tokens.supervised[:, 1:], (0, 1)),
            "text_states": (layer, self.text_states.get(ids, mask)) if self.reuses_texts else None,
            "plain": self.plain,
        }

    @torch.no_grad()
    def answer(
        self, samples: Sequence[Sample], *, decoding: Decoding | None = None, batch_size: int | None = None
    ) -> list[str]:
        """Generated text of each sample, as the LM wrote it. The same for a sample alone or in any batch (float32)."""
        decoding = decoding or Decoding(**self.recipe.decode.model_dump())
        size = batch_size or self.recipe.eval.batch_size
        answers: list[str] = []
        for start in range(0, len(samples), size):
            answers += self._answer_batch(samples[start : start + size], decoding)
        return answers

    def _answer_batch(self, samples: Sequence[Sample], decoding: Decoding) -> list[str]:
        return [self.text.decode(row) for row in self.generated(*self.prompts(samples), samples, decoding)]

    def prompts(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, list[Slots]]:
        """Ids and mask (B, T) of the prompts, and their slots."""
        tokens = self.text.pad_left([self.text.prompt_ids(sample) for sample in samples])
        device = self.lm.device
        slots = self.method.plan(_moved(self.encode(samples), device), len(samples))
        return tokens.input_ids.to(device), tokens.attention_mask.to(device), slots

    def generated(
        self, ids: Tensor, mask: Tensor, slots: Sequence[Slots], samples: Sequence[Sample], decoding: Decoding, *,
        seeds: Sequence[int] | None = None, watch: Watch | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """New tokens of each row. `seeds` stand for `decoding.seed`, row by row."""
        given = [replace(decoding, seed=seed) for seed in seeds or [decoding.seed] * len(samples)]
        return self.lm.generate(
            ids, mask, slots, decoding, eos=self.text.eos, pad=self.text.pad, watch=watch,
            seeds=[self.seed_of(*pair) for pair in zip(samples, given, strict=True)] if decoding.sample else None,
        )  # fmt: skip

    @torch.no_grad()
    def token_logprobs(
        self, samples: Sequence[Sample], *, decoding: Decoding | None = None
    ) -> list[list[tuple[str, float]]]:
        """The tokens of each sample's answer with the LM's log-probabilities, end token included where one came."""
        return likelihood.token_logprobs(self, samples, decoding or Decoding(**self.recipe.decode.model_dump()))

    @torch.no_grad()
    def rank(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, normalize: bool = False,
        batch_size: int | None = None,
    ) -> list[list[float]]:  # fmt: skip
        """Log-probability of each sample's candidate answers with their end token; `normalize`: per token.

        The same for a sample alone or in any batch (float32). `batch_size` counts candidates.
        """
        size = batch_size or self.recipe.eval.batch_size
        return likelihood.rank(self, samples, candidates, normalize=normalize, batch_size=size)

    def seed_of(self, sample: Sample, decoding: Decoding) -> int:
        """What an answer is drawn with: the same wherever the same question on the same media is asked."""
        parts = [repr((decoding.seed, self.text.prompt_ids(sample))).encode()]
        for modality, medium in sorted(sample.media.items()):
            parts += [modality.encode(), digest_of(content(medium))]
        return int.from_bytes(digest_of(*parts)[:7], "little")

    @torch.no_grad()
    def fit_statistics(self, samples: Sequence[Sample], *, known: Collection[str] = ()) -> None:
        """Feature statistics for methods that standardise, from the media of these (training) samples.

        Modalities that are `known` keep theirs.
        """
        if not self.method.standardizes:
            return
        for modality, store in self.stores.items():
            if modality in known:
                continue
            media, _ = _media(samples, modality)
            if len(media) < 2:
                raise UserError(f"method.standardize needs at least two training samples with `{modality}`")
            values = store.get(media)  # (N, n_levels, T, dim)
            self.method.set_statistics(modality, values.mean((0, 2)), values.std((0, 2)).clamp_min(1e-4))


def _media(
    samples: Sequence[Sample], modality: str, draws: Sequence[int] | None = None
) -> tuple[list[Medium], list[int] | None]:
    """The media of a modality and, if there are any, their draws."""
    having = [i for i, sample in enumerate(samples) if modality in sample.media]
    return [samples[i].media[modality] for i in having], None if draws is None else [draws[i] for i in having]


def _by_row(samples: Sequence[Sample], modality: str, given: Tensor) -> Features:
    """Features of the rows that have the modality, spread over all rows."""
    present = torch.tensor([modality in sample.media for sample in samples])
    values = given.new_zeros(len(samples), *given.shape[1:])
    values[present] = given
    return Features(values, present)


def _moved(features: Mapping[str, Features], device: torch.device) -> dict[str, Features]:
    return {name: Features(f.values.to(device), f.present.to(device)) for name, f in features.items()}


def _first_target(sample: Sample) -> str:
    if not sample.targets:
        raise UserError(f"sample `{sample.id}` has no target to learn from")
    return sample.targets[0]


def count(module: nn.Module, *, without: nn.Module | None = None) -> int:
    """Parameters of a module, tied weights once, of quantised ones the numbers they stand for.

    `without` leaves out those that are another module's, too.
    """
    others = set() if without is None else {id(parameter) for parameter in without.parameters()}
    own = [parameter for parameter in module.parameters() if id(parameter) not in others]
    return sum(math.prod(getattr(getattr(p, "quant_state", None), "shape", p.shape)) for p in own)


def count_trained(method: nn.Module) -> int:
    """Parameters of a method that `train.freeze` leaves to be trained."""
    return sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)


def _stores(recipe: Recipe, encoders: Mapping[str, Encoder], method: Method) -> dict[str, FeatureStore]:
    """Where features come from: kept ones, or computed with gradients if the encoders are trained."""
    if not method.trains_encoders:
        return feature_stores(recipe, encoders, method)
    return {
        name: LiveFeatures(encoder, method.levels(name), method.tokens(name), views=recipe.encoders[name].views)
        for name, encoder in encoders.items()
    }
