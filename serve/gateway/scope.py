"""What an API key may be used for."""

from enum import StrEnum


class Scope(StrEnum):
    """One use. A key has one or several."""

    GENERATE = "generate"
    JUDGE = "judge"
    VOTE = "vote"
    METRICS = "metrics"
