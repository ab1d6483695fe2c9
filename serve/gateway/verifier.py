"""Whose key a request brings. What is not known for certain to be a valid key is refused."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from castor.io.errors import CastorError
from serve.gateway.errors import InvalidKey, KeysUnreadable, Overloaded
from serve.gateway.keys import Key, KeyRecord, parse_records, read_records, utc_now
from serve.gateway.scrypt import ScryptHash

LONGEST_TOKEN = 200  # characters
LOOK_EVERY_S = 1.0  # at the file, for changes
SCRYPTS = 2  # at a time: each takes a core and 16 MiB
MOST_CHECKS = 128  # keys that wait for their scrypt, some seconds' worth
_TOKEN = re.compile(r"castor-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")

NO_KEY = "no API key: send the header 'Authorization: Bearer castor-ID-SECRET'"
INVALID = "this API key is not valid"
EXPIRED = "this API key has expired"

logger = logging.getLogger("ray.serve")


class Verifier:
    """Checks keys in one event loop.

    A key's first request costs a scrypt, in a thread. After that its HMAC under a key of this process is compared,
    which takes microseconds; the token itself is not kept. A wrong secret and an unknown id cost a scrypt each, so that
    the time of an answer tells nothing.
    """

    def __init__(
        self,
        records: Mapping[str, KeyRecord],
        path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Use `from_file` or `from_environment`. `clock` is in seconds; `now` gives the time, with its time zone."""
        self._records: Mapping[str, KeyRecord] | None = records  # None: they cannot be read
        self._path, self._clock, self._now = path, clock, now
        self._state: tuple[int, ...] | None = None  # of the file, when it was read
        self._next_look = clock()
        self._process_key = secrets.token_bytes(32)
        self._nothing = ScryptHash.of_nothing()
        self._verified: dict[
            str, tuple[bytes, ScryptHash]
        ] = {}  # id -> HMAC of its token, and what that was checked by
        self._checks: dict[tuple[bytes, str], asyncio.Task[bool]] = {}
        self._scrypts = asyncio.Semaphore(SCRYPTS)

    @classmethod
    def from_file(
        cls, path: Path, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = utc_now
    ) -> Verifier:
        """By a file, which is read again when it changes. Raises CastorError when it cannot be read now."""
        return cls(read_records(path), path, clock, now)

    @classmethod
    def from_environment(cls, variable: str, now: Callable[[], datetime] = utc_now) -> Verifier:
        """By an environment variable with the content of such a file. Raises CastorError when it is not that."""
        content = os.environ.get(variable)
        if not content:
            raise CastorError(
                f"the environment variable {variable} is not set or empty: put the content of a key file into it"
            )
        return cls(parse_records(content.encode("utf-8", "surrogateescape"), f"${variable}"), now=now)

    async def verify(self, token: str | None) -> Key:
        """The key that a client sent; None: it sent none.

        Raises:
            InvalidKey: it is none, is unknown, wrong or revoked, which are not told apart, or has expired.
            KeysUnreadable: the file has been damaged since; once it is mended, keys are valid again.
            Overloaded: too many keys wait for their first check. Those already checked are not affected.

        """
        if token is None:
            raise InvalidKey(NO_KEY)
        parts = _TOKEN.fullmatch(token) if len(token) <= LONGEST_TOKEN else None
        if parts is None:
            raise InvalidKey(INVALID)
        id, secret = parts.groups()
        code = hmac.digest(self._process_key, token.encode("ascii"), "sha256")
        record = self._current().get(id)
        if not self._is_verified(id, code, record):
            stored = self._nothing if record is None else record.hash
            if not await self._check(code, secret, stored):
                raise InvalidKey(INVALID)
            self._verified[id] = code, stored
            record = self._current().get(id)  # it may have been revoked meanwhile
            if not self._is_verified(id, code, record):
                raise InvalidKey(INVALID)
        assert record is not None
        if record.revoked:
            raise InvalidKey(INVALID)
        if record.has_expired(self._now()):
            raise InvalidKey(EXPIRED)
        return record.key(id)

    def _is_verified(self, id: str, code: bytes, record: KeyRecord | None) -> bool:
        """Whether this token was checked by the hash that is stored now."""
        if record is None or id not in self._verified:
            return False
        known, checked_by = self._verified[id]
        return hmac.compare_digest(known, code) and hmac.compare_digest(checked_by.digest, record.hash.digest)

    async def _check(self, code: bytes, secret: str, stored: ScryptHash) -> bool:
        """Whether the secret is right. Requests that bring the same key at the same time wait for one scrypt."""
        name = code, stored.digest
        if name not in self._checks:
            if len(self._checks) >= MOST_CHECKS:
                raise Overloaded("too many API keys are being checked: try again", retry_after=1)
            self._checks[name] = asyncio.create_task(self._scrypt(secret, stored))
            self._checks[name].add_done_callback(lambda _: self._checks.pop(name))
        return await asyncio.shield(self._checks[name])  # one client that goes away leaves the others their answer

    async def _scrypt(self, secret: str, stored: ScryptHash) -> bool:
        async with self._scrypts:
            return await asyncio.to_thread(stored.matches, secret)

    def _current(self) -> Mapping[str, KeyRecord]:
        """The stored keys, at most `LOOK_EVERY_S` old. Raises KeysUnreadable."""
        if self._path is not None and self._clock() >= self._next_look:
            self._next_look = self._clock() + LOOK_EVERY_S
            self._look(self._path)
        if self._records is None:
            raise KeysUnreadable("API keys cannot be checked at the moment: try again later", retry_after=5)
        return self._records

    def _look(self, path: Path) -> None:
        """Read the file again if it has changed, and as long as it cannot be read."""
        state = _state_of(path)  # before it is read: what is written while it is read is seen at the next look
        if self._records is not None and state is not None and state == self._state:
            return
        was_readable = self._records is not None
        try:
            self._records, self._state = read_records(path), state
        except CastorError as error:
            if was_readable:
                logger.error("no key is valid: %s", error)
            self._records = None
            return
        if not was_readable:
            logger.warning("the API keys in %s can be read again", path)


def _state_of(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None  # why is said by whoever reads it
    return found.st_mtime_ns, found.st_size, found.st_ino
