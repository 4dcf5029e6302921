"""Long-running processes: the schedule and the web pages."""
