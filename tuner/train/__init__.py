"""Training: losses, optimizers, checkpoints, the trainer, and what a recipe calls around it."""

from tuner.hardware import use_huge_pages

use_huge_pages()  # before anything imported below makes the process's first tensor
