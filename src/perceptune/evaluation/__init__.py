"""Answering a data set and scoring it: `evaluate`, controls, results with intervals, model cards."""
