"""Conversations that outlive a server: every turn in a database."""
