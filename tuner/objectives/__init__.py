"""What a model is trained for: one class a method. Light: nothing here imports torch."""
