"""Raw files in, accepted splits out."""
