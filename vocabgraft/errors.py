"""The one exception that a user's mistake or a failed check raises."""


class VocabgraftError(Exception):
    """Says what was wrong, the value seen, what is allowed and what to do; shown without a traceback."""
