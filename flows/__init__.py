"""Prefect flows over the DAG that dvc.yaml defines."""
