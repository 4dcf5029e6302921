"""One module a stage of dvc.yaml: load, one domain call, save."""
