"""Finds the words of a corpus that are worth adding."""
