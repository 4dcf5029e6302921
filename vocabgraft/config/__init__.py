"""params.yaml as types: every key checked before any work starts."""
