"""Rows to tensors, one way: sources -> schema -> encode -> pack or collate."""
