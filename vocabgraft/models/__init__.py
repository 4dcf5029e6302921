"""A loaded model: find, resize, save and load it, and encode texts."""
