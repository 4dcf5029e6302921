"""Commands beside the pipeline, one module each."""
