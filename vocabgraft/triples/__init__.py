"""Losses and link prediction for the triples of a knowledge graph."""
