"""A vocabulary apart from its base: saved, combined, transferred, switched."""
