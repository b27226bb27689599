"""(b) prompt tuning of PEFT and (c) text-only generation, both on transformers' own forward and generate."""

import warnings
from typing import Any

import torch
from torch import Tensor

from perceptune.models.text_format import Tokens

VIRTUAL_TOKENS = 10


class PromptTuning:
    """PEFT's prompt tuning on a plain LM: trains `VIRTUAL_TOKENS` vectors in front of the text, without any image."""

    def __init__(self, lm: Any) -> None:
        from peft import PromptTuningConfig, TaskType, get_peft_model

        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=VIRTUAL_TOKENS)
        with warnings.catch_warnings():  # PEFT reads an attribute that transformers has renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            self.model: Any = get_peft_model(lm, config).eval()  # no dropout, as in ours

    def trained(self) -> list[torch.nn.Parameter]:
        """The virtual tokens."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def loss(self, tokens: Tokens) -> Tensor:
        """Mean cross-entropy of the supervised tokens."""
        labels = tokens.input_ids.masked_fill(~tokens.supervised, -100)
        loss: Tensor = self.model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=labels, use_cache=False
        ).loss
        return loss

    def generate(self, ids: Tensor, mask: Tensor, new_tokens: int, beams: int = 1) -> Tensor:
        """(B, new_tokens)."""
        with warnings.catch_warnings():  # PEFT counts positions itself, and says so at every call
            warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
            return _new(self.model, ids, mask, new_tokens, beams)


def text_only(lm: Any, ids: Tensor, mask: Tensor, new_tokens: int, beams: int = 1) -> Tensor:
    """(B, new_tokens) of transformers' own `generate` with its KV cache."""
    return _new(lm, ids, mask, new_tokens, beams)


@torch.no_grad()
def _new(model: Any, ids: Tensor, mask: Tensor, new_tokens: int, beams: int) -> Tensor:
    from transformers import GenerationConfig

    config = GenerationConfig(  # no end token: every row has the same length
        max_new_tokens=new_tokens, num_beams=beams, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    sequences: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    # With a prompt given as embeddings, transformers returns the new tokens alone.
    new = sequences if sequences.shape[1] == new_tokens else sequences[:, ids.shape[1] :]
    if new.shape[1] != new_tokens:
        raise RuntimeError(f"{new.shape[1]} tokens were generated instead of {new_tokens}")
    return new
