"""Files and folders: written atomically, hashed, locked."""
