"""Ontologies and knowledge graphs turned into raw files."""
