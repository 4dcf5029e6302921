"""Which words to add, and where they come from."""
