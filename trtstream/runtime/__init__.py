"""Runs an engine: batching, sessions, sampling and text, the same for every target."""
