"""Which words can be added to a tokenizer, and how they match."""
