"""Measurements outside the package: speed (`python -m benchmarks`), two commits, metrics, a server under load."""
