"""transformers' own `generate`, for LMs that cannot be split and for scores that depend on the answer so far."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perceptune.errors import UserError
from perceptune.lm.frozen_lm import FrozenLM
from perceptune.lm.generation.sampling import make_sampler
from perceptune.lm.slot_hooks import Splice, slots_in_text
from perceptune.types import GenerationRequest
from perceptune.utils.tensors import prepend_slot_columns


def hf_generate(lm: FrozenLM, request: GenerationRequest) -> list[list[int]]:
    """Run transformers' `generate`; return the new tokens of each row with the end token and the padding behind it.

    Of each row there are `request.num_return_sequences`.
    """
    from transformers import DynamicCache

    prompt, each = request.prompt, max(request.decoding.beams, request.n_sampled)
    rows = torch.arange(len(prompt.ids)).repeat_interleave(each)
    slots, index = [slot.of_rows(rows) for slot in prompt.slots], rows.to(prompt.mask.device)
    splice = Splice(slots, prompt.mask[index])
    in_text = slots_in_text(prompt.ids[index], slots, splice.width)
    ids, mask, _ = prepend_slot_columns(prompt.ids, prompt.mask, splice.width)
    # An unwindowed cache: a sliding-window cache would drop the slots, which must stay visible.
    cache = {} if splice.sees_text else {"past_key_values": DynamicCache()}
    with lm.hooks_active(splice, None, in_text):
        return run_hf_generate(
            lm.model, {"input_ids": ids, "attention_mask": mask, **cache}, request, width=ids.shape[1],
            use_cache=not splice.sees_text,
        )  # fmt: skip


def run_hf_generate(
    model: Any, inputs: Mapping[str, Any], request: GenerationRequest, *, width: int, **settings: Any
) -> list[list[int]]:
    """Run `model.generate` on `inputs` with a limit per row; new tokens start at column `width`.

    Only the mask of `request.prompt` is read: its tokens count for `decoding.max_length`.
    """
    from transformers import GenerationConfig

    decoding, eos, callback, each = request.decoding, request.eos, request.callback, request.n_sampled
    limits = decoding.max_new_tokens_per_row(request.prompt.mask).repeat_interleave(each)
    repeated = {
        name: given.repeat_interleave(each, 0) if isinstance(given, Tensor) else given for name, given in inputs.items()
    }
    sampler = make_sampler(request, limits.device)

    if decoding.counts_prompt:
        raise UserError(
            "decode.length_normalization: `total` is for beams of an LM with slots, without `min_new_tokens` and "
            "`repetition_penalty`; choose `answer`"
        )
    search = (
        {"length_penalty": decoding.length_penalty, "num_return_sequences": request.num_return_sequences}
        if decoding.beams > 1
        else {}
    )
    config = GenerationConfig(
        max_new_tokens=int(limits.max()), num_beams=decoding.beams, do_sample=False, eos_token_id=eos,
        pad_token_id=request.pad, **search, **settings,
    )  # fmt: skip

    def draw(_: Tensor, logits: Tensor) -> Tensor:
        """Mask all tokens but the sampled one, so that this loop, too, uses each row's own random numbers."""
        chosen = sampler(logits, range(len(logits)))
        return torch.full_like(logits, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def restrained(given: Tensor, scores: Tensor) -> Tensor:
        """Apply the processors to the answer alone: the tokens of the prompt and its padding do not count."""
        said = given[:, width:]
        before = scores.gather(1, said)
        after = torch.where(before < 0, before * decoding.repetition_penalty, before / decoding.repetition_penalty)
        scores = scores.scatter(1, said, after)
        if said.shape[1] < decoding.min_new_tokens:
            scores[:, eos] = -torch.inf
        return scores

    def full(given: Tensor, _: Any) -> Tensor:
        done = given.shape[1] - width >= limits
        if callback is not None:
            done |= torch.tensor([not callback.is_wanted(row) for row in range(len(limits))], device=done.device)
        return done.repeat_interleave(len(given) // len(limits))

    processors = [restrained] * decoding.changes_scores + [draw] * decoding.sample
    sequences = model.generate(
        **repeated, generation_config=config, stopping_criteria=[full], logits_processor=processors
    )
    most = limits.repeat_interleave(request.num_return_sequences // each).tolist()
    return [row[:limit] for row, limit in zip(sequences[:, width:].tolist(), most, strict=True)]
