"""A sweep: a grid of settings, each point run in a copy of the project, and compared."""
