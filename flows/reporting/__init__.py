"""What a run tells people: the report and the webhook."""
