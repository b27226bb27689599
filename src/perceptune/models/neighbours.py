"""Captions of the training media most like a sample's, which consensus decoding may compare its candidates with.

They are the training's own data, so they are stored with a run only if its recipe asks for them, and never shared.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from perceptune.config.recipe import Recipe
from perceptune.data.build_task import make_task
from perceptune.data.media.source import content
from perceptune.data.metrics.base import DocumentFrequencies
from perceptune.data.tasks.base import Task
from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError, error_prefix
from perceptune.models.consensus import consensus_sections
from perceptune.models.document_frequencies import training_documents
from perceptune.models.likeness_regression import LikenessRegression
from perceptune.models.run_location import NEIGHBOURS
from perceptune.types import Features, Sample
from perceptune.utils.atomic_io import write_chunks
from perceptune.utils.row_store.store import digest_of

_AT_A_TIME = 64  # media whose features are in memory


@dataclass(frozen=True)
class Neighbours:
    """Training media by their features: [CLS] and the mean patch of the last level, as far as the run has them."""

    modality: str
    special: int  # tokens of a level before the patches
    mean: Tensor  # (D,) of the vectors
    scale: Tensor  # (D,) their standard deviation
    vectors: Tensor  # (N, D) standardised, of length 1; float16
    digests: Tensor  # (M, 16) uint8: of the contents of all media
    owners: Tensor  # (M,) row of each of them
    captions: Sequence[Sequence[str]]  # of each row
    _fitted: list[LikenessRegression] = field(default_factory=list, init=False, repr=False, compare=False)

    def nearest(self, sample: Sample, features: Mapping[str, Features], row: int, count: int) -> dict[str, float]:
        """Return the captions of the `count` training rows nearest to a sample, and their weights, which sum to 1.

        A neighbour's weight, the softmax of the cosines, is divided among its captions. Rows with a medium of the
        sample's own are left out. Without media there are none. `features` are those of a batch, with the sample's row.
        """
        own = self._vector(sample, features, row)
        if own is None:
            return {}
        cosines = (self.vectors.float() * own).sum(1)  # one product for each row: the same bits with any others
        cosines[self._own_rows(sample)] = -torch.inf
        best = cosines.topk(min(count, len(cosines)))
        weights = best.values.softmax(0).nan_to_num(0.0).tolist()  # only its own media were trained on: no weight
        found: dict[str, float] = {}
        for place, weight in zip(best.indices.tolist(), weights, strict=True):
            for caption in self.captions[place] if weight > 0 else ():
                found[caption] = found.get(caption, 0.0) + weight / len(self.captions[place])
        return found

    def predict_likeness(
        self, texts: Sequence[str], sample: Sample, features: Mapping[str, Features], row: int,
        frequencies: DocumentFrequencies, ridge: float,
    ) -> list[float]:  # fmt: skip
        """Return the CIDEr-D of texts with a sample's captions as a regression on all training rows predicts it.

        Rows with a medium of the sample's own are left out; all are 0 without media. `features` as in `nearest`.
        """
        own = self._vector(sample, features, row)
        if own is None:
            return [0.0] * len(texts)
        if not self._fitted or (self._fitted[0].frequencies, self._fitted[0].ridge) != (frequencies, ridge):
            vectors = self.vectors.double().numpy()
            self._fitted[:] = [LikenessRegression(vectors, self.captions, frequencies, ridge)]
        return self._fitted[0].predict(texts, own.double().numpy(), self._own_rows(sample))

    def _vector(self, sample: Sample, features: Mapping[str, Features], row: int) -> Tensor | None:
        """Return the mean vector (D,) of a sample's media, standardised and of length 1; None without media."""
        if not sample.list_media(self.modality):
            return None
        levels = features[self.modality].of_rows(slice(row, row + 1))
        values = levels.values[levels.present].cpu()  # (media, n_levels, T, dim)
        return _normalized((_vectors(values, self.special).mean(0) - self.mean) / self.scale)

    def _own_rows(self, sample: Sample) -> list[int]:
        """Return the rows that have a medium with the content of one of the sample's."""
        own = [torch.tensor([*digest_of(content(one))], dtype=torch.uint8) for one in sample.list_media(self.modality)]
        return sorted({row for digest in own for row in self.owners[(self.digests == digest).all(1)].tolist()})

    def digest(self) -> str:
        """Return the SHA-256 of everything that answers depend on."""
        return hashlib.sha256(_packed(self)).hexdigest()


def training_neighbours(recipe: Recipe, stores: Mapping[str, FeatureStore], task: Task | None = None) -> Neighbours:
    """Return the media of a recipe's training samples with their captions; `task` is the recipe's, if it is there.

    Raises `UserError` without media.
    """
    if len(stores) != 1:
        raise UserError("decode.consensus: neighbours and regression are for runs with one encoder; set them to 0")
    [(modality, store)] = stores.items()
    task = make_task(recipe) if task is None else task
    documents = [(sample.list_media(modality), texts) for sample, texts in training_documents(recipe, task)]
    documents = [(media, texts) for media, texts in documents if media and texts]
    if len(documents) < 2:
        raise UserError(
            "decode.consensus: neighbours and regression need at least two training media with captions; set them to 0"
        )
    special = store.encoder.n_special if store.tokens == "all" else min(1, store.encoder.n_special)
    media = [medium for own, _ in documents for medium in own]
    parts = [media[start : start + _AT_A_TIME] for start in range(0, len(media), _AT_A_TIME)]
    single = torch.cat([_vectors(store.get(part), special).cpu() for part in parts])
    vectors = torch.stack([part.mean(0) for part in single.split([len(own) for own, _ in documents])])
    mean, scale = vectors.mean(0), vectors.std(0).clamp_min(1e-4)
    owners = torch.tensor([row for row, (own, _) in enumerate(documents) for _ in own])
    digests = torch.tensor([[*digest_of(content(medium))] for medium in media], dtype=torch.uint8)
    standard = _normalized((vectors - mean) / scale).half()
    return Neighbours(modality, special, mean, scale, standard, digests, owners, [texts for _, texts in documents])


def run_neighbours(run: Path, recipe: Recipe, stores: Mapping[str, FeatureStore]) -> Neighbours | None:
    """Return the neighbours stored with a run if its recipe needs them, else None; without them, from its data."""
    if not needs_neighbours(recipe):
        return None
    if (run / NEIGHBOURS).is_file():
        return read_neighbours(run / NEIGHBOURS)
    with error_prefix(f"decode.consensus: `{run}` has no {NEIGHBOURS}, so its training data is needed"):
        return training_neighbours(recipe, stores)


def needs_neighbours(recipe: Recipe) -> bool:
    """Return whether a recipe's own data or another set of its evaluation is answered with training captions."""
    return any(section.neighbours > 0 or section.regression > 0 for section in consensus_sections(recipe))


def write_neighbours(run: Path, neighbours: Neighbours) -> None:
    """Store neighbours with a run."""
    write_chunks(run / NEIGHBOURS, [_packed(neighbours)])


def read_neighbours(path: Path) -> Neighbours:
    """Read stored neighbours. Raises `UserError` for a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["neighbours"])
            return Neighbours(**about, **{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, KeyError):
        raise UserError(f"{path}: damaged; delete it to take the neighbours from the training data") from None


def _packed(given: Neighbours) -> bytes:
    stored = {one.name: getattr(given, one.name) for one in fields(given) if one.init}
    tensors = {name: value.contiguous() for name, value in stored.items() if isinstance(value, Tensor)}
    about = {name: value for name, value in stored.items() if name not in tensors}
    return save(tensors, {"neighbours": json.dumps(about, ensure_ascii=False)})


def _vectors(values: Tensor, special: int) -> Tensor:
    """Return the vectors (N, D) of features (N, n_levels, T, dim)."""
    last = values[:, -1].float()
    if last.shape[1] == 1:
        return last[:, 0]
    patches = last[:, special:].mean(1)
    return torch.cat([last[:, 0], patches], 1) if special else patches


def _normalized(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
