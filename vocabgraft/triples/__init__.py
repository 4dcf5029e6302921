"""Losses and link prediction for knowledge graphs."""
