"""The start of a Q-Former from a BERT, whose structure it has but for the cross-attention.

A Q-Former that starts so reads instructions before any training. The published ones start from BERT base, too (BLIP-2,
arXiv 2301.12597, section 3.1). Cross-attention and queries stay random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perceptune.config.command_schema import BuildConfig
from perceptune.errors import UserError
from perceptune.models import pretrained
from perceptune.utils.transformers_loading import require_all_weights

# Keys of `build` that the BERT decides -> keys of its config.
_DECIDED = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "vocabulary": "vocab_size",
}  # fmt: skip
_SHARED = (
    *_DECIDED.values(), "intermediate_size", "hidden_act", "layer_norm_eps", "max_position_embeddings", "pad_token_id",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range",
)  # fmt: skip
# Modules of a Q-Former's layer -> the one of a BERT's layer; queries and text have feed-forward parts of their own.
_LAYER = {
    "attention.attention.query": "attention.self.query",
    "attention.attention.key": "attention.self.key",
    "attention.attention.value": "attention.self.value",
    "attention.output.dense": "attention.output.dense",
    "attention.output.LayerNorm": "attention.output.LayerNorm",
    "intermediate.dense": "intermediate.dense",
    "intermediate_query.dense": "intermediate.dense",
    "output.dense": "output.dense",
    "output.LayerNorm": "output.LayerNorm",
    "output_query.dense": "output.dense",
    "output_query.LayerNorm": "output.LayerNorm",
}
_CROSS = ".crossattention."


@dataclass(frozen=True)
class QFormerStart:
    """A BERT and its tokenizer."""

    bert: nn.Module
    tokenizer: Any

    def shape(self) -> dict[str, Any]:
        """Return the keys of a Q-Former's config that are the BERT's."""
        config: Any = self.bert.config
        return {key: getattr(config, key) for key in _SHARED}

    @torch.no_grad()
    def fill(self, qformer: nn.Module) -> int:
        """Copy the BERT's weights into a Q-Former of its shape; return how many tensors of the Q-Former they fill.

        The tensors left are those of the cross-attention, or an error is raised.
        """
        given, own = dict(self._renamed()), qformer.state_dict()
        wrong = [name for name in given.keys() ^ own.keys() if name in given or _CROSS not in name]
        if wrong:
            raise UserError(f"the Q-Former of this transformers has other parts than a BERT, first `{min(wrong)}`")
        qformer.load_state_dict({**own, **given})
        return len(given)

    def _renamed(self) -> Iterator[tuple[str, Tensor]]:
        bert: Any = self.bert
        embeddings = bert.embeddings
        yield "embeddings.word_embeddings.weight", embeddings.word_embeddings.weight
        # A Q-Former knows no types of tokens: the first type's vector, which BERT adds to each token, is added here.
        positions = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
        yield "embeddings.position_embeddings.weight", positions
        for leaf in ("weight", "bias"):
            yield f"embeddings.layernorm.{leaf}", getattr(embeddings.LayerNorm, leaf)
        for index, layer in enumerate(bert.encoder.layer):
            for target, source in _LAYER.items():
                for leaf, value in layer.get_submodule(source).state_dict().items():
                    yield f"encoder.layer.{index}.{target}.{leaf}", value


def load_start(name: str, build: BuildConfig) -> QFormerStart:
    """Load the BERT that `build.qformer` names.

    Raises `UserError` for another model and for keys that contradict it.
    """
    from transformers import AutoTokenizer, BertModel

    where = pretrained.resolve(name, "", False)
    with pretrained.loading(f"build.qformer `{name}`", name):
        config = pretrained.read_config(where, None)
        if config.model_type != "bert":
            raise UserError(
                f"build.qformer `{name}` is of model type `{config.model_type}`: a Q-Former starts from a BERT"
            )
        _require_agreement(name, config, build)
        kind: Any = BertModel
        bert, report = kind.from_pretrained(
            where, config=config, dtype=torch.float32, add_pooling_layer=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(where)
    require_all_weights(f"`{name}`", report)
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"`{name}`: its tokenizer has {len(tokenizer)} tokens, its embeddings {config.vocab_size} rows")
    return QFormerStart(bert.eval(), tokenizer)


def _require_agreement(name: str, config: Any, build: BuildConfig) -> None:
    """Raise `UserError` for a key of the shape that was given and is not the BERT's."""
    for key, own in _DECIDED.items():
        value, given = getattr(config, own), getattr(build, key)
        if key in build.model_fields_set and given != value:
            raise UserError(
                f"build.{key} is {given}, but the Q-Former starts from `{name}`, which has {value}: leave it out"
            )
