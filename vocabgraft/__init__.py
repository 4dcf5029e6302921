"""Graft new words onto a sentence-embedding model and prove that nothing else moved."""
