"""The embedding rows of new tokens: how they are trained and where they start."""
