"""A loss that aligns image tokens with the words of the answer."""

import torch
from torch import Tensor
from torch.nn import functional


def grounding_loss(tokens: Tensor, words: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of each row's words among those of the whole batch, given its image tokens.

    `tokens` (B, K, D), `words` (V, D) and `own` (B, V), 1 where a row has a word and 0 elsewhere. A word's score is the
    log-sum-exp of its cosines to the row's image tokens over `temperature`, so that one matching token is enough; the
    loss is the cross-entropy of the rows' own words, each weighted by its inverse document frequency in the batch: a
    word that all rows contain does not depend on the image and does not count. A scalar; 0 if there is no other word.
    """
    weights = own * (len(own) / own.sum(0)).log()
    weights = weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    scores = functional.normalize(tokens, dim=-1) @ functional.normalize(words, dim=-1).T / temperature
    surprise = -scores.logsumexp(1).log_softmax(-1)
    return (weights * surprise).sum()
