"""A run as `LlavaForConditionalGeneration`: its configuration and all of its weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from perceptune.encoders.base import ViTEncoder
from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.models.slots.model import SlotModel
from perceptune.tools.export.llava.projector import projector_of

# LLaVA ties its head to this name only.
_TIED = "embed_tokens.weight"


def llava_of(model: SlotModel, image_token: int) -> LlavaForConditionalGeneration:
    """Return a run's model in LLaVA's layout, in float32; its frozen weights are shared with the run's.

    `image_token` is the id of `<image>`; an LM without a row for it gets more. Raises `UserError` for an LM whose
    decoder transformers does not build by itself, and for a PEFT type that cannot be merged.
    """
    method: Any = model.method
    encoder: Any = model.encoders["image"]
    assert isinstance(encoder, ViTEncoder)
    projector = projector_of(method.connectors["image"], method.options.mapper, model.lm.hidden_size)
    language, head = _language_model(model.lm, merged_weights(method), image_token + 1)
    is_tied = _is_tied(model.lm)
    text = copy.deepcopy(model.lm.config)
    text.vocab_size, text.tie_word_embeddings = len(head), is_tied
    [level] = method.levels("image")
    made = _built(
        LlavaConfig(
            vision_config=encoder.tower.config, text_config=text, image_token_index=image_token,
            image_seq_length=encoder.n_tokens, projector_hidden_act=projector.activation,
            vision_feature_select_strategy="full", vision_feature_layer=level - encoder.n_layers,
            tie_word_embeddings=is_tied,
        )
    )  # fmt: skip
    decoder, own = made.model.language_model, model.lm.model.base_model
    if type(decoder) is not type(own):
        raise UserError(
            f"LLaVA's layout has no place for this run: its LM's decoder is {type(own).__name__}, and transformers "
            f"builds {type(decoder).__name__} from the configuration"
        )
    tower = made.model.vision_tower
    _fill(tower, {**_unused(tower), **encoder.tower.state_dict()})
    _fill(made.model.multi_modal_projector, projector.tensors())
    _fill(decoder, language)
    _fill(made.lm_head, {"weight": head})
    made.tie_weights()
    return made.eval()


def merged_weights(method: Any) -> dict[str, Tensor]:
    """Return the LM's weights that PEFT layers change, by name, with the layers merged into them.

    The LM stays as it is. Raises `UserError` for a PEFT type that cannot be merged.
    """
    merged: dict[str, Tensor] = {}
    for name in method.peft.names if hasattr(method, "peft") else ():
        layer = copy.deepcopy(method.peft[name.replace(".", "/")])  # with the frozen weights below it
        try:
            layer.merge(safe_merge=True)
        except (NotImplementedError, ValueError) as error:
            raise UserError(
                f"LLaVA's layout has no place for this run: {method.peft.kind} cannot be merged into the LM's weights "
                f"({error})"
            ) from error
        base = layer.get_base_layer()
        merged |= {f"{name}.{key}": tensor.detach() for key, tensor in base.state_dict().items()}
    return merged


def _language_model(lm: FrozenLM, merged: Mapping[str, Tensor], rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the decoder's weights by name, and its head, with at least so many rows in embedding and head."""
    base = lm.model.base_model
    prefix = f"{lm.model.base_model_prefix}."
    weights = {**base.state_dict(), **{name.removeprefix(prefix): tensor for name, tensor in merged.items()}}
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    embedding = _embedding_name(lm)
    weights[embedding] = _lengthened(weights[embedding], rows)
    head = weights[embedding] if _is_tied(lm) else _lengthened(lm.model.get_output_embeddings().weight, rows)
    return weights, head.detach().float()


def _embedding_name(lm: FrozenLM) -> str:
    own = lm.model.get_input_embeddings().weight
    return next(name for name, one in lm.model.base_model.named_parameters() if one is own)


def _is_tied(lm: FrozenLM) -> bool:
    """Whether the head is the embedding, in the place where LLaVA looks for it."""
    same = lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight
    return same and _embedding_name(lm) == _TIED


def _lengthened(rows: Tensor, number: int) -> Tensor:
    """Return a matrix with at least so many rows.

    LLaVA replaces the embedding of `<image>`, so any will do. In the head the mean row gives the mean of all logits,
    which is never the greatest one.
    """
    missing = number - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows.mean(0, keepdim=True).expand(missing, -1)])


def _built(config: LlavaConfig) -> LlavaForConditionalGeneration:
    """Return the model of a configuration, its weights not initialised."""
    with no_init_weights():
        return LlavaForConditionalGeneration(config).float()


def _unused(tower: nn.Module) -> dict[str, Tensor]:
    """Return zeros for a pooler, which AutoModel builds and LLaVA does not read."""
    return {name: torch.zeros_like(own) for name, own in tower.state_dict().items() if name.startswith("pooler.")}


def _fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    module.load_state_dict({name: tensor.detach() for name, tensor in weights.items()}, assign=True)
