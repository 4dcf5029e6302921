"""params.yaml as types. Every key is checked before any work starts."""
