"""A vector index kept valid after a new model."""
