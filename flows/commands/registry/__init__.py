"""`vocabgraft registry`: the versions of the registered model."""
