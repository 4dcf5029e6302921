"""The HTML report of a run, section by section, and the webhook for failures."""
