"""Metrics, one file each. An extension builds on `perceptune.data.metrics.base`."""
