"""An index of embeddings, and what a new model does to it."""
