"""Raw files in, accepted splits out: which words, rows and texts are accepted, and why others are refused."""
