"""Greedy decoding, sampling, beam search and log-probabilities on our own key-value cache."""
