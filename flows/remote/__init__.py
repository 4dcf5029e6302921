"""Stages and sweep points on other machines of a Ray cluster."""
