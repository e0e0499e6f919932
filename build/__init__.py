"""checkpoint -> engine: checkpoint readers, model families, one module per target."""
