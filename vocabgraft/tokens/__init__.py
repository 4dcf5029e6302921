"""Which words may be added to a tokenizer, and how they match."""
