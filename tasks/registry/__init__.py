"""MLflow's registry: look-up, registration, versions, model cards, and the gates a champion must pass."""
