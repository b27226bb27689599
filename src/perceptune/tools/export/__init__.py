"""Giving a run to others: a zip file, a hub."""
