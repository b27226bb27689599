"""Sharing a run: a zip file, a hub."""
