"""Ontologies and knowledge graphs, converted to raw files."""
