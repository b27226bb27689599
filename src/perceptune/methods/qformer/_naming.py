"""A loss that aligns image tokens with the words of the answer, for Q-Formers that do not yet use the image."""

import torch
from torch import Tensor
from torch.nn import functional


def word_grounding_loss(tokens: Tensor, words: Tensor, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each row's words among those of the whole batch, given its image tokens.

    `tokens` (B, K, D) are the LM's image tokens, `words` (B, S, D) its embeddings of the answers' tokens
    `ids` (B, S) where `mask` (B, S) is 1. A word's score is the log-sum-exp of its cosines to the row's image tokens
    over `temperature`, so that one matching token is enough; the loss is the cross-entropy of the rows' own words, each
    weighted by its inverse document frequency in the batch: a word that all rows contain does not depend on the image
    and does not count. A scalar; 0 if there is no other word.
    """
    there = mask.bool()
    vocabulary, place = ids[there].unique(return_inverse=True)
    embedded = words.new_zeros(len(vocabulary), words.shape[-1])
    embedded[place] = words[there]
    own = tokens.new_zeros(len(tokens), len(vocabulary))
    own[there.nonzero()[:, 0], place] = 1
    weights = own * (len(own) / own.sum(0)).log()
    weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    scores = functional.normalize(tokens, dim=-1) @ functional.normalize(embedded, dim=-1).T / temperature
    surprise = -scores.logsumexp(1).log_softmax(-1)
    return (weights * surprise).sum()
