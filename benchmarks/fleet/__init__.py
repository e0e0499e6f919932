"""Several servers on one store, behind a proxy."""
