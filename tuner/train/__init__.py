"""Objectives and the trainer: losses, checkpoints, callbacks, and the mixin that every trainer shares."""
