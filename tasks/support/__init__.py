"""What every stage shares: its command line, its models, its expectations of data."""
