"""Requests per minute and at a time, on a clock that goes on when told to."""

from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from serve.gateway.errors import RateLimited
from serve.gateway.keys import Key
from serve.gateway.limits import Limits
from serve.gateway.scope import Scope


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def _key(requests_per_minute: int | None = None, concurrency: int | None = None, id: str = "0" * 8) -> Key:
    return Key(
        id=id, name="ann", scopes=frozenset({Scope.GENERATE}), models=None, created=datetime(2030, 1, 1, tzinfo=UTC),
        expires=None, revoked=False, requests_per_minute=requests_per_minute, concurrency=concurrency,
    )  # fmt: skip


def _send(limits: Limits, key: Key) -> int | None:
    """None when it goes through, else Retry-After."""
    try:
        with limits.request(key):
            return None
    except RateLimited as error:
        return error.retry_after


def test_a_minutes_requests_at_once_then_at_their_rate() -> None:
    clock = Clock()
    limits, key = Limits(clock=clock), _key(requests_per_minute=6)
    assert [_send(limits, key) for _ in range(7)] == [None] * 6 + [10]
    clock.seconds += 4
    assert _send(limits, key) == 6  # and what is refused costs nothing
    clock.seconds += 6
    assert [_send(limits, key) for _ in range(2)] == [None, 10]
    clock.seconds += 3600  # an idle hour saves up one minute's requests
    assert [_send(limits, key) for _ in range(7)] == [None] * 6 + [10]


def test_over_a_long_time_the_rate_is_the_limit() -> None:
    clock = Clock()
    limits, key = Limits(clock=clock), _key(requests_per_minute=30)
    sent = 0
    for _ in range(6000):  # ten minutes, ten tries a second
        sent += _send(limits, key) is None
        clock.seconds += 0.1
    assert sent == pytest.approx(30 + 300, abs=1)


def test_as_many_at_a_time() -> None:
    clock = Clock()
    limits, key = Limits(clock=clock), _key(concurrency=2)
    with limits.request(key):
        with limits.request(key):
            assert limits.running(key.id) == 2
            with pytest.raises(RateLimited, match="has 2 requests at work") as error, limits.request(key):
                pass
            assert error.value.retry_after == 1  # nothing is known yet
            clock.seconds += 30
        assert _send(limits, key) is None
    assert limits.running(key.id) == 0


def test_retry_after_follows_from_how_long_requests_took() -> None:
    clock = Clock()
    limits, key = Limits(clock=clock), _key(concurrency=2)
    for _ in range(3):
        with limits.request(key):
            clock.seconds += 30
    with limits.request(key), limits.request(key):
        assert _send(limits, key) == 15  # two at work, of 30 s each: one ends every 15 s


def test_a_request_that_fails_gives_its_place_back() -> None:
    limits, key = Limits(), _key(concurrency=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limits.request(key):
            raise ZeroDivisionError
    assert _send(limits, key) is None


def test_a_request_without_a_place_takes_no_token() -> None:
    limits, key = Limits(clock=Clock()), _key(requests_per_minute=2, concurrency=1)
    with limits.request(key):
        for _ in range(5):
            with pytest.raises(RateLimited, match="at work"), limits.request(key):
                pass
    assert [_send(limits, key) for _ in range(2)] == [None, 30]


def test_keys_do_not_share_and_may_have_no_limit() -> None:
    limits = Limits(clock=Clock())
    first, second, free = _key(1, 1, "a" * 8), _key(1, 1, "b" * 8), _key(id="c" * 8)
    with limits.request(first):
        assert _send(limits, second) is None
    assert _send(limits, first) == 60
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(limits.request(free))
        assert limits.running(free.id) == 1000


def test_a_limit_that_changes() -> None:
    limits = Limits(clock=Clock())
    assert [_send(limits, _key()) for _ in range(100)] == [None] * 100
    assert [_send(limits, _key(requests_per_minute=2)) for _ in range(3)] == [None, None, 30]


def test_replicas_share_what_a_key_may_ask_for() -> None:
    clock = Clock()
    limits, key = Limits(replicas=4, clock=clock), _key(requests_per_minute=8, concurrency=5)
    with limits.request(key), limits.request(key):
        assert limits.running(key.id) == 2
        assert _send(limits, key) == 1
    assert _send(limits, key) == 30
    slow = _key(requests_per_minute=1, id="b" * 8)  # a quarter of a request a minute is one every four minutes
    assert [_send(limits, slow) for _ in range(2)] == [None, 240]
