"""Orchestration, commands and console: the DAG of dvc.yaml, run with or without Prefect."""
