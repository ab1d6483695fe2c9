"""Answers that are errors: what a client is told, and with which HTTP status."""

from __future__ import annotations

import math
from typing import Any

# OpenAI's names of kinds of errors.
AUTHENTICATION, PERMISSION = "authentication_error", "permission_error"
RATE_LIMIT, SERVER = "rate_limit_error", "server_error"

LONGEST_RETRY_S = 3600


class RequestError(Exception):
    """A request that is answered with an error. The message is for the client: it names no file and no secret.

    A subclass sets what all of its errors share. `param` is the field of the request that is to blame; `retry_after`
    is in seconds and kept as whole ones, 1 to 3600.
    """

    status: int = 500
    code: str = "internal_error"
    kind: str = SERVER  # OpenAI's `type`

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after: int | None = None if retry_after is None else _whole(retry_after)

    def body(self) -> dict[str, Any]:
        """The JSON body, in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The HTTP headers that go with the body: Retry-After, where a later try can help."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class InvalidKey(RequestError):
    """No key, or one that opens nothing."""

    status, code, kind = 401, "invalid_api_key", AUTHENTICATION

    def headers(self) -> dict[str, str]:
        """Names the scheme, as RFC 9110 (section 11.6.1) asks of every 401."""
        return super().headers() | {"WWW-Authenticate": "Bearer"}


class InsufficientScope(RequestError):
    """A valid key that may not do this."""

    status, code, kind = 403, "insufficient_scope", PERMISSION


class RateLimited(RequestError):
    """A key has used up what it may ask for now."""

    status, code, kind = 429, "rate_limit_exceeded", RATE_LIMIT


class Overloaded(RequestError):
    """More requests wait than can be answered in time, whoever sent them."""

    status, code, kind = 429, "overloaded", RATE_LIMIT


class KeysUnreadable(RequestError):
    """The keys cannot be read at the moment, so nobody is let in."""

    status, code, kind = 503, "keys_unreadable", SERVER


def _whole(seconds: float) -> int:
    """Rounded up: Retry-After has no fractions, and 0 would bring every client back at once."""
    return min(max(math.ceil(seconds), 1), LONGEST_RETRY_S)
