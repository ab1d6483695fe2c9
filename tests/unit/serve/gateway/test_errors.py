"""Errors in OpenAI's shape."""

import pytest

from serve.gateway.errors import (
    InsufficientScope,
    InvalidKey,
    KeysUnreadable,
    Overloaded,
    RateLimited,
    RequestError,
)


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (RequestError, 500, "internal_error", "server_error"),
        (InvalidKey, 401, "invalid_api_key", "authentication_error"),
        (InsufficientScope, 403, "insufficient_scope", "permission_error"),
        (RateLimited, 429, "rate_limit_exceeded", "rate_limit_error"),
        (Overloaded, 429, "overloaded", "rate_limit_error"),
        (KeysUnreadable, 503, "keys_unreadable", "server_error"),
    ],
)
def test_status_and_body(error: type[RequestError], status: int, code: str, kind: str) -> None:
    one = error("why", param="model")
    assert (one.status, str(one)) == (status, "why")
    assert one.body() == {"error": {"message": "why", "type": kind, "param": "model", "code": code}}


@pytest.mark.parametrize(("wait", "said"), [(0, "1"), (0.01, "1"), (1.0, "1"), (1.01, "2"), (1e9, "3600")])
def test_retry_after_is_in_whole_seconds_and_never_zero(wait: float, said: str) -> None:
    assert RateLimited("later", retry_after=wait).headers() == {"Retry-After": said}


def test_headers_where_a_later_try_does_not_help() -> None:
    assert InsufficientScope("no").headers() == {}
    assert InvalidKey("no").headers() == {"WWW-Authenticate": "Bearer"}
