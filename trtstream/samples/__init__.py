"""Sample data, fetched once and kept: a trained chat model and a text of a million tokens."""
