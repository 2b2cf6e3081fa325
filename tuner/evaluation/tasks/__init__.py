"""What a model is evaluated on: one file a task, which says what it takes, scores rows, and makes figures of scores."""
