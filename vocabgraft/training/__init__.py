"""Adapters, trained by the trainer of sentence-transformers."""
