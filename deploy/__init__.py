"""engine -> service -> client: package, serve, smoke, bench, chat."""
