"""Scoring of files: predictions against references, without a model."""
