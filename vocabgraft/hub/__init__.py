"""A model shared on a model hub: its card, its files, one commit."""
