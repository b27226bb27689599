"""Base of all models: frozen parts and a trained method, with `loss` for training and `answer` for inference."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perceptune.config.recipe import Recipe
from perceptune.data.answer_cleaning import AnswerCleaning
from perceptune.data.media.source import MediaError
from perceptune.data.metrics.base import DocumentFrequencies
from perceptune.encoders.base import Encoder
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError, nearest
from perceptune.methods.base import TrainableMethod, count, count_trained
from perceptune.models.consensus import References, answer_by_consensus, decoding_of, uses_consensus
from perceptune.models.media_rows import by_row, first_uses, media_of, require_count
from perceptune.models.text_format import Batch, FrozenPart, TextFormat
from perceptune.models.text_rows import Tokens
from perceptune.types import Decoding, Features, Medium, Sample, StreamCallback
from perceptune.utils.devices import use_full_float32
from perceptune.utils.distributed import World
from perceptune.utils.fsdp_settings import FSDPSettings
from perceptune.utils.tensors import move


class AdaptedModel(nn.Module, ABC):
    """Model returned by `perceptune.build` and `perceptune.load`; only `method.parameters()` are trained.

    Each backbone is a subclass.
    """

    method: TrainableMethod
    required_modalities: ClassVar[frozenset[str]] = frozenset()  # a sample needs these
    supports_continuous_batching: ClassVar[bool] = False
    has_qformer: ClassVar[bool] = False
    cleaning: AnswerCleaning | None = None  # how answers are extracted from generated text, as stored with a run
    frequencies: DocumentFrequencies | None = None  # of the training references, for consensus decoding
    neighbours: References | None = None  # training media with their captions, for consensus decoding that needs them

    member_runs: Sequence[Path] = ()  # of an ensemble

    def __init__(
        self, recipe: Recipe, encoders: Mapping[str, Encoder], stores: Mapping[str, FeatureStore],
        text: TextFormat | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = recipe
        self.encoders = nn.ModuleDict(dict(encoders))
        self.stores = dict(stores)
        self._text = text

    @property
    def device(self) -> torch.device:
        """Device of the LM and the method."""
        return next(self.method.parameters()).device

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """Maximum number of prompt and answer tokens by the LM's position embeddings; None if it has no such limit."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of the LM's hidden states."""

    @property
    def decoding(self) -> Decoding:
        """Decoding settings of the recipe."""
        return decoding_of(self.recipe)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the frozen weights outside the encoders, taken before any training."""

    @abstractmethod
    def frozen_parts(self) -> dict[str, FrozenPart]:
        """Return every frozen part by name, including modules that the method trains or wraps."""

    def count_parameters(self) -> tuple[int, int]:
        """Return the number of trained parameters and of all parameters; tied weights count once."""
        frozen = sum(count(part.module, without=self.method) for part in self.frozen_parts().values())
        return count_trained(self.method), frozen + count(self.method)

    @abstractmethod
    def setup(self, *, training: bool = False, sharded: bool = False) -> None:
        """Configure how the frozen parts run, as the recipe says; `build` and `load` call it, and it is idempotent.

        All commands run the frozen parts alike, in `training` or not, so that they give the same answers.
        `sharded`: the weights are spread over several processes. Raises `UserError` for keys that do not apply here.
        """

    def place(self, world: World) -> None:
        """Move to this process's device, or shard the LM over all; raise `UserError` if it cannot be sharded."""
        use_full_float32(world.device)
        if world.sharding is not None and uses_consensus(self.recipe):
            with world.same_on_all_ranks():
                raise UserError("decode.consensus: not with FSDP, whose processes would run other numbers of batches")
        if world.sharding is None:
            self.to(world.device)
        else:
            self._shard(world, world.sharding)

    def _shard(self, world: World, settings: FSDPSettings) -> None:
        with world.same_on_all_ranks():
            raise UserError(f"accelerate: FSDP is not supported for `backbone: {self.recipe.backbone}`")

    def fit_to_answers(self, samples: Sequence[Sample]) -> None:
        """Initialise the connections from the answers of these training samples; call after `fit_statistics`."""
        raise self._cannot("has no connections to start from answers")

    @abstractmethod
    def set_dropout(self, *, on: bool) -> None:
        """Switch the dropout of the method's own parts (such as LoRA) and, if the recipe asks for it, of the LM."""

    @abstractmethod
    def tokens(self, samples: Sequence[Sample], targets: Sequence[str] | None = None) -> Tokens:
        """Tokenise the text part of a batch; `targets` default to each sample's first."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the loss summed over the supervised tokens, and their number."""

    @abstractmethod
    def generate(
        self, samples: Sequence[Sample], decoding: Decoding, *, seeds: Sequence[int] | None = None,
        callback: StreamCallback | None = None, num_return_sequences: int = 1,
        features: Mapping[str, Features] | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Return the generated tokens of each sample of one batch, without end tokens.

        `num_return_sequences` of each sample are returned one after another: its best beams, best first, or draws.
        `seeds` replace `decoding.seed`, one per sequence; `callback` receives each token and can stop a sequence early.
        `features` are those of `encode`, if they are known.
        """

    @property
    def reuses_texts(self) -> bool:
        """Whether layers that receive text only are run once per distinct text."""
        return False

    def precompute_texts(self, texts: Iterable[tuple[int, ...]], uses: int, *, rank: int = 0, world: int = 1) -> None:
        """Precompute the text states that training reuses, or disable reuse if `uses` is too small for a gain."""

    def count_texts(self, texts: Iterable[tuple[int, ...]], uses: int) -> int | None:
        """Return how many texts' states `precompute_texts` would compute; None if none."""
        return None

    @contextmanager
    def trying_texts(self) -> Iterator[Callable[[Iterable[tuple[int, ...]]], int]]:
        """Recompute texts' states in the block; the given function keeps those of texts and returns their number."""
        yield lambda texts: 0

    def refresh_texts(self) -> None:
        """Load text states that other processes have computed."""

    @abstractmethod
    def layer_info(self) -> dict[str, int]:
        """Return `lm_layers` and `first_layer`, below which the layers receive text only."""

    def run_info(self) -> dict[str, Any]:
        """Return how the model is run, for the first line of a run's log."""
        return {}

    @property
    def text(self) -> TextFormat:
        """Prompt template and tokenizer."""
        if self._text is None:
            raise UserError("this model was built from configurations only: it has no tokenizer")
        return self._text

    @text.setter
    def text(self, text: TextFormat) -> None:
        self._text = text

    def precompute(
        self, samples: Sequence[Sample], view_seeds: Sequence[int] | None = None, *, label: str = "features",
        rank: int = 0, world: int = 1, on_broken: Callable[[Sample, Medium, MediaError], None] | None = None,
        whole_groups: bool = False,
    ) -> int:  # fmt: skip
        """Compute the features of these samples' media that are not cached yet, so that `encode` only reads them.

        `view_seeds` as in `encode`. Each of `world` processes, given the same samples, computes its part. A broken
        medium is passed to `on_broken` with the first sample that uses it; without `on_broken`, `MediaError` is raised.
        Returns their number. `whole_groups` as in `FeatureStore.precompute`.
        """
        samples, computed = list(samples), 0  # may be a lazy iterable
        self.check_modalities(samples)
        for modality, store in self.stores.items():
            first = first_uses(samples, modality)

            def tell(medium: Medium, error: MediaError, first: dict[Medium, Sample] = first) -> None:
                assert on_broken is not None
                on_broken(first[medium], medium, error)

            computed += store.precompute(
                *media_of(samples, modality, view_seeds), label=label, rank=rank, world=world,
                on_broken=tell if on_broken else None, whole_groups=whole_groups,
            )  # fmt: skip
        return computed

    def count_missing(self, samples: Sequence[Sample], view_seeds: Sequence[int] | None = None) -> int:
        """Return the number of features that `precompute` would compute."""
        return sum(
            store.count_missing(*media_of(samples, modality, view_seeds)) for modality, store in self.stores.items()
        )

    def collate(
        self, samples: Sequence[Sample], targets: Sequence[str] | None = None, view_seeds: Sequence[int] | None = None
    ) -> Batch:
        """Return a training batch; `targets` default to each sample's first, `view_seeds` as in `encode`.

        Raises `UserError` naming the sample.
        """
        return Batch(self.tokens(samples, targets), self.encode(samples, view_seeds))

    def encode(self, samples: Sequence[Sample], view_seeds: Sequence[int] | None = None) -> dict[str, Features]:
        """Return the features of each modality; rows without that modality hold zeros and are marked absent.

        `view_seeds`, one per sample, choose the augmented views of a recipe that has them (`encoders.MODALITY.views`);
        without seeds the media are not augmented.
        """
        self.check_modalities(samples)
        encoded = {}
        for modality, store in self.stores.items():
            media, chosen = media_of(samples, modality, view_seeds)
            if media:
                encoded[modality] = by_row(samples, modality, store.get(media, chosen))
        return encoded

    def get_cached(
        self, samples: Sequence[Sample], view_seeds: Sequence[int] | None = None
    ) -> dict[str, Features] | None:
        """Return what `encode` would if all features are cached, else None. Thread-safe."""
        features = {}
        for modality, store in self.stores.items():
            media, chosen = media_of(samples, modality, view_seeds)
            if media:
                values = store.get_cached(media, chosen)
                if values is None:
                    return None
                features[modality] = by_row(samples, modality, values)
        return features

    def check_modalities(self, samples: Sequence[Sample]) -> None:
        """Raise `UserError` for a medium that no encoder of this model accepts, or more of them than `max_media`."""
        for sample in samples:
            for modality in sample.media:
                if modality not in self.stores:
                    raise UserError(
                        f"sample `{sample.id}` has `{modality}`, for which this model has no encoder"
                        f"{nearest(modality, self.stores)}"
                    )
                require_count(sample, modality, self.recipe.encoders[modality].max_media)

    @torch.no_grad()
    def answer(
        self, samples: Sequence[Sample], *, decoding: Decoding | None = None, batch_size: int | None = None
    ) -> list[str]:
        """Return the generated text of each sample; it does not depend on the other samples of the batch (float32).

        Raises `UserError` for consensus decoding of a model that is not from a run folder and has no `frequencies`.
        """
        decoding = decoding or self.decoding
        size = batch_size or self.recipe.eval.batch_size
        if decoding.consensus is not None:
            return answer_by_consensus(self, samples, decoding, size)
        answers: list[str] = []
        for start in range(0, len(samples), size):
            answers += [self.text.decode(row) for row in self.generate(samples[start : start + size], decoding)]
        return answers

    def token_logprobs(
        self, samples: Sequence[Sample], *, decoding: Decoding | None = None
    ) -> list[list[tuple[str, float]]]:
        """Return each sample's answer as tokens with log-probabilities, the end token included if generated."""
        raise self._cannot("gives no log-probabilities of its tokens")

    def rank(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, normalize: bool = False,
        batch_size: int | None = None,
    ) -> list[list[float]]:  # fmt: skip
        """Return the log-probability of each sample's candidate answers, end token included; `normalize`: per token.

        A score does not depend on the other samples of the batch (float32). `batch_size` counts candidates.
        """
        raise self._cannot("does not rank candidates")

    def loglikelihood(
        self, samples: Sequence[Sample], candidates: Sequence[Sequence[str]], *, batch_size: int | None = None
    ) -> list[list[tuple[float, bool]]]:
        """Return what `rank` does, and for each candidate whether greedy decoding would choose each of its tokens."""
        raise self._cannot("does not rank candidates")

    def _cannot(self, what: str) -> UserError:
        return UserError(f"`backbone: {self.recipe.backbone}` {what}; `splice` does")

    @torch.no_grad()
    def fit_statistics(self, samples: Sequence[Sample], *, known: Collection[str] = ()) -> None:
        """Compute feature statistics for methods that standardise, from the media of these (training) samples.

        Modalities in `known` keep theirs.
        """
        if not self.method.standardizes:
            return
        for modality, store in self.stores.items():
            if modality in known:
                continue
            media, _ = media_of(samples, modality)
            if len(media) < 2:  # a training batch has one row per medium
                raise UserError(f"method.standardize needs two different media for `{modality}`, the training samples "
                                f"hold {len(media)}: add another, or set method.standardize=false")  # fmt: skip
            values = store.get(media)  # (N, n_levels, T, dim)
            self.method.set_statistics(modality, values.mean((0, 2)), values.std((0, 2)).clamp_min(1e-4))
