"""Files that are written whole, hashed and locked."""
