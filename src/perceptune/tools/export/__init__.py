"""Sharing a run: as a zip file or on a hub."""
