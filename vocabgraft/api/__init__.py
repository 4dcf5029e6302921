"""The public Python API: extend, train, check and merge a model in memory. Import it from `vocabgraft`."""
