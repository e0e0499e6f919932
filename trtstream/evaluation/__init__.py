"""What a window costs and what it keeps: perplexity and recall of a long text, from the command line."""
