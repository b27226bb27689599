"""Generation for the turns of a conversation, each of which reuses what was computed for those before it."""

import torch

from perceptune.lm.generation.decode_state import GROWTH, DecodeState
from perceptune.lm.generation.generate import ContinuousBatch, GeneratedSequence, uses_hf_generate
from perceptune.lm.generation.prefix_reuse import ContinuedState, KnownTexts, groups_of, text_of
from perceptune.lm.generation.sampling import make_sampler, truncate_at_eos
from perceptune.models.slots.model import SlotModel
from perceptune.types import Decoding, Sample


@torch.no_grad()
def generate_turn(model: SlotModel, sample: Sample, decoding: Decoding, known: KnownTexts) -> list[int]:
    """Return the tokens that `model.generate` returns for one sample; its text is kept in `known`.

    Beam search and transformers' own loop reuse nothing.
    """
    request = model.request([sample], decoding)
    if decoding.beams > 1 or uses_hf_generate(model.lm, request.prompt.slots, decoding):
        return model.generate([sample], decoding)[0]
    text = model.content_of(sample)
    found = known.find(None, text.columns)
    limit = int(decoding.max_new_tokens_per_row(request.prompt.mask))
    room = min(limit, GROWTH)
    if found is None:
        state = DecodeState(model.lm, request.prompt, room)
    else:
        state = ContinuedState(model.lm, request.prompt, room, found, text.media)

    def keep(state: DecodeState, place: int) -> None:
        # The last token was chosen, but not run.
        columns = (*text.columns, *((token,) for token in row.tokens[:-1]))
        known.keep(None, columns, text_of(state, place, groups_of(request.prompt.slots, text.media)))

    row = GeneratedSequence(limit, request.eos, make_sampler(request, model.device), on_end=keep)
    batch = ContinuousBatch(state, [row])
    while batch.step():
        pass
    return truncate_at_eos(request.eos, row.tokens)
