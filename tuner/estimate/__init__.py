"""Parameters, operations and bytes of a model, by counting."""
