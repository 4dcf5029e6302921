"""Shared by all stages: command line, models, preflight checks, Data Docs."""
