"""Which words of a corpus are worth adding."""
