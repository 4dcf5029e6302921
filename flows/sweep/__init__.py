"""A grid of settings, run and compared."""
