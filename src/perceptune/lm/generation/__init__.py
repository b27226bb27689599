"""Greedy decoding and sampling in a continuous batch, beam search and log-probabilities, on our own KV cache."""
