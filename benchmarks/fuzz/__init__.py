"""Malformed inputs by the thousand: what they are and what may come of them."""
