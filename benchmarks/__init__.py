"""Measurements: each prints a table with the figure, the goal and what it was measured beside."""
