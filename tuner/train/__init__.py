"""Training: losses, optimizers, checkpoints, the trainer, and what a recipe calls around it."""
