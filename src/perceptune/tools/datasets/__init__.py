"""Data set tools: validate before training, convert, synthesise."""
