"""The stages of dvc.yaml: planned, started, watched and ended."""
