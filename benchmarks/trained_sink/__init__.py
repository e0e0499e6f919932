"""Does a sink token that a model was trained with do the work of several? The paper's section 4.3, at a small size."""
