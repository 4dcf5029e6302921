"""Adapters (which weights train), trained by the trainer of sentence-transformers."""
