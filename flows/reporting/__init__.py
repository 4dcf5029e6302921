"""The report of a run, and the webhook for failures."""
