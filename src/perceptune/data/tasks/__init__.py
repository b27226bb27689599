"""Data sets, one file each. An extension builds on `perceptune.data.tasks.base`."""
