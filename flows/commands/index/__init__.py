"""`vocabgraft index`: an index of embeddings, and a new model."""
