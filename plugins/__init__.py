"""Streaming attention: its definition, and one implementation per runtime."""
