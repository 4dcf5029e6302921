"""Orchestration and commands: the DAG of dvc.yaml, run with or without Prefect."""
