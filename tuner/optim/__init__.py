"""Optimizers that torch and transformers do not have."""
