"""Frozen encoders, one file for each family. An extension builds on `perceptune.encoders.base`."""
