"""What do kills at any moment leave of sessions in a store? See `__main__`."""
