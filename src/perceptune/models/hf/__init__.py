"""Perceptune models as classes of transformers; `perceptune.hf` is their public face."""
