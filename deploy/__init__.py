"""engine -> service -> client."""
