"""The commands of `vocabgraft`, one function each; its signature is the command line."""
