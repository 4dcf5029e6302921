"""The commands of `vocabgraft`: one function each, whose signature is the command line."""
