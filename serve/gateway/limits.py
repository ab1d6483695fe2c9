"""What one key may ask for: requests per minute, and requests at work at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve.gateway.errors import RateLimited
from serve.gateway.keys import Key
from serve.gateway.recent_times import RecentTimes

MINUTE_S = 60.0


@dataclass
class _Use:
    """What a key has used."""

    tokens: float  # requests it may still send at once
    at: float  # when that was so
    running: int = 0
    times: RecentTimes = field(default_factory=RecentTimes)


class Limits:
    """A token bucket and a count of running requests per key, by the limits that stand in the key, in one event loop.

    The bucket holds a minute's requests: a key that was idle may send them all at once.
    """

    def __init__(self, replicas: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """`replicas` such objects share what a key may ask for; `clock` is in seconds."""
        self.replicas, self._clock = replicas, clock
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def request(self, key: Key) -> Iterator[None]:
        """Around one request, up to the last byte of its answer. Raises RateLimited."""
        now = self._clock()
        use = self._uses.setdefault(key.id, _Use(math.inf, now))
        self._require_place(key, use)  # first: a request that finds no place takes no token
        self._take_token(key, use, now)
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1
            use.times.add(self._clock() - now)

    def running(self, key_id: str) -> int:
        """Requests of the key that are at work."""
        use = self._uses.get(key_id)
        return 0 if use is None else use.running

    def _require_place(self, key: Key, use: _Use) -> None:
        if key.concurrency is None:
            return
        places = math.ceil(key.concurrency / self.replicas)
        if use.running >= places:
            raise RateLimited(
                f"this API key has {use.running} requests at work, which is as many as it may: wait for one of them",
                retry_after=use.times.until_free(ahead=0, places=use.running),
            )

    def _take_token(self, key: Key, use: _Use, now: float) -> None:
        if key.requests_per_minute is None:
            return
        a_minute = key.requests_per_minute / self.replicas
        capacity = max(a_minute, 1.0)  # a bucket that holds no whole token would never let anything through
        tokens = min(use.tokens + (now - use.at) * a_minute / MINUTE_S, capacity)
        use.tokens, use.at = tokens, now
        if tokens < 1:
            raise RateLimited(
                f"this API key may send {key.requests_per_minute} requests per minute: wait before the next one",
                retry_after=(1 - tokens) * MINUTE_S / a_minute,
            )
        use.tokens -= 1
