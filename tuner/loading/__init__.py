"""A model to train: new, or from a folder, the Hub, a GGUF file or a package."""
