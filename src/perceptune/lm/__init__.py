"""Frozen language models: slots beside the text, split execution, precision, sharding."""
