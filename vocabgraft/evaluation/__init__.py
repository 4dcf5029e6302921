"""Metrics on held-out data, with their intervals."""
