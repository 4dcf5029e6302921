"""MLflow's registry: look-up, registration, versions, and the gates of promotion."""
