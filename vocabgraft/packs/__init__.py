"""Vocabularies stored separately from their base: saved, combined, transferred, switched."""
