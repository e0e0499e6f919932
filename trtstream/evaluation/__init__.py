"""``trtstream eval``: perplexity and recall over a long text, for any window and number of sink tokens."""
