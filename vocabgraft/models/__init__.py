"""A model's folder: found, trusted, resized, saved, and its texts encoded."""
