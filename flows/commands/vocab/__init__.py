"""`vocabgraft vocab`: choose words to add, or import them."""
