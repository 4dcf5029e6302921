"""A vocabulary kept apart from its base: saved, combined, transferred, switched."""
