"""Files and folders: written whole, hashed, locked."""
