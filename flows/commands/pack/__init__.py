"""`vocabgraft pack`: vocabulary packs."""
