"""Recipes: their schema with every default, overrides from the command line, and the registry of leaf files by name."""
