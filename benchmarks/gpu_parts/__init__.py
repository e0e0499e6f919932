"""The parts of benchmarks/gpu.py. Nothing here needs more than torch and this repository's sources."""
