"""The stages of dvc.yaml, one module per stage: load, one domain call, save."""
