"""The page where a person types a query and compares models."""
