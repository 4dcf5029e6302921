"""Processes that stay: the schedule and the web pages."""
