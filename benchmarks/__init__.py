"""Benchmarks: each prints a table with the value, the goal and the comparison."""
