"""Frozen encoders, one file for each family; `_blocks.py` takes the [CLS] token of their layers.

An extension builds on `perceptune.encoders.base`.
"""
