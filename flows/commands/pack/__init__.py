"""Vocabulary packs."""
