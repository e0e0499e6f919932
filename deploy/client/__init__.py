"""The client's side: one client, and smoke, bench and chat on it."""
