"""Generation for the turns of a conversation, each of which reuses what was computed for those before it."""

import torch

from perceptune.lm.generation.decode_state import GROWTH, DecodeState
from perceptune.lm.generation.ensemble import EnsemblePrompt
from perceptune.lm.generation.generate import ContinuousBatch, GeneratedSequence, generate, uses_hf_generate
from perceptune.lm.generation.prefix_reuse import ContinuedState, KnownTexts, make_keeper
from perceptune.lm.generation.sampling import make_sampler, truncate_at_eos
from perceptune.models.slots.model import SlotModel
from perceptune.types import Decoding, Sample


@torch.no_grad()
def generate_turn(model: SlotModel, sample: Sample, decoding: Decoding, known: KnownTexts) -> list[int]:
    """Return the tokens that `model.generate` returns for one sample; its text is kept in `known`.

    Beam search, ensembles and transformers' own loop reuse nothing.
    """
    request = model.request([sample], decoding)
    slots = request.prompt.slots
    is_ensemble = isinstance(request.prompt, EnsemblePrompt)
    if is_ensemble or decoding.beams > 1 or uses_hf_generate(model.lm, slots, decoding):
        return generate(model.lm, request)[0]
    text = model.content_of(sample)
    found = known.find(None, text.columns)
    limit = int(decoding.max_new_tokens_per_row(request.prompt.mask))
    room = min(limit, GROWTH)
    if found is None:
        state = DecodeState(model.lm, request.prompt, room)
    else:
        state = ContinuedState(model.lm, request.prompt, room, found, text.media)
    row = GeneratedSequence(limit, request.eos, make_sampler(request, model.device))
    row.on_end = make_keeper(known, None, text, slots, row.tokens)
    batch = ContinuousBatch(state, [row])
    while batch.step():
        pass
    return truncate_at_eos(request.eos, row.tokens)
