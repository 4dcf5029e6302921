"""The registry of MLflow: lookups, registration, versions, gates."""
