"""A vector index, updated for a new model."""
