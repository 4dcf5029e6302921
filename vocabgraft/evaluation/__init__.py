"""Metrics on held-out data, with confidence intervals."""
