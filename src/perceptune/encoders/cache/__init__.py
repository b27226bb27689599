"""Encoder features, computed once for each medium and kept on disk or in memory."""
