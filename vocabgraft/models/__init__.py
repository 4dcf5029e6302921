"""A model folder: find, trust, resize, save and load it, and encode texts."""
