"""Initialise connections by regression: map features to the LM's own states of the training answers.

A slot with random states has to be learnt through all layers of the LM, whereas the LM's own state of "red" is
usable from the first step, and a linear map from a frozen encoder's features to it is a least-squares problem.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perceptune.encoders.cache.feature_cache import FeatureStore
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.methods.slots.base import Method
from perceptune.models.text_format import TextFormat
from perceptune.types import Medium, Sample

# They do not describe the image: which of them is right depends on the question.
UNNAMED = ("yes", "no")
# The state of an LM's first token is an outlier, so the target is preceded by another word.
BEFORE = "a "


@torch.no_grad()
def fit_to_answers(
    method: Method, lm: FrozenLM, text: TextFormat, stores: Mapping[str, FeatureStore], samples: Sequence[Sample]
) -> None:
    """Fit the connections of a method to the LM's states of these samples' answers.

    The target for a medium is the mean state of the last token over its samples' first targets, yes and no excluded.
    Raises `UserError` if fewer than two media of a modality have such a target.
    """
    states: dict[str, dict[int, Tensor]] = {}
    for modality, store in stores.items():
        said: dict[Medium, list[str]] = {}
        for sample in samples:
            for medium in sample.list_media(modality) if sample.targets[0].lower() not in UNNAMED else ():
                said.setdefault(medium, []).append(sample.targets[0])
        if len(said) < 2:
            raise UserError(
                f"method.connector_init: answers needs training samples of at least two different `{modality}` with "
                f"answers other than yes and no; {len(said)} found"
            )
        for target in sorted({target for targets in said.values() for target in targets} - set(states)):
            states[target] = _states(lm, text, target, method.entries())
        wanted = {
            layer: torch.stack([torch.stack([states[t][layer] for t in targets]).mean(0) for targets in said.values()])
            for layer in method.entries()
        }
        method.fit_connections(modality, store.get(list(said)).to(lm.device), wanted)


def _states(lm: FrozenLM, text: TextFormat, target: str, layers: Sequence[int]) -> dict[int, Tensor]:
    """Return the state (d,) of a target's last token at the input of each of the layers, in float32."""
    ids = torch.tensor([text.plain_ids(BEFORE + target)], device=lm.device)
    mask = torch.ones_like(ids)
    return {layer: lm.hidden_states_at(layer, ids, mask)[0, -1].float() for layer in set(layers)}
