"""Alignment of image tokens with the embeddings of the answer, for Q-Formers that do not yet use the image."""

from torch import Tensor

from perceptune.methods.parts.word_grounding import grounding_loss


def word_grounding_loss(tokens: Tensor, words: Tensor, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return `grounding_loss` of the LM's image tokens (B, K, D) towards the answers' tokens.

    `words` (B, S, D) are the LM's embeddings of these tokens, `ids` (B, S), where `mask` (B, S) is 1.
    """
    there = mask.bool()
    vocabulary, place = ids[there].unique(return_inverse=True)
    embedded = words.new_zeros(len(vocabulary), words.shape[-1])
    embedded[place] = words[there]
    own = tokens.new_zeros(len(tokens), len(vocabulary))
    own[there.nonzero()[:, 0], place] = 1
    return grounding_loss(tokens, embedded, own, temperature)
