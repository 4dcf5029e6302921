"""A model folder on disk, read without loading the model: its files, its code, its weights and embedding matrix."""
