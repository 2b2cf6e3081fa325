"""Arguments: which flags there are, and how they are read. Light: nothing here imports torch."""
