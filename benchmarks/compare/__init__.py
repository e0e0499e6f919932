"""This engine and its peers, in turn: ``python -m benchmarks.compare``."""
