"""From raw files to accepted splits: validates words, rows and texts, and gives the reason for each refusal."""
