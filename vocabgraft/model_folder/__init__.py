"""A model folder on disk, read without loading the model: its files, code, weights and embedding matrix."""
