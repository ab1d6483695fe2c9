"""API keys: what each may do, and the file that holds them without their secrets."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_serializer,
)

from castor.io.errors import CastorError
from castor.io.files import atomic_write, make_folder, refusals_named
from serve.gateway.errors import InsufficientScope
from serve.gateway.scope import Scope as Scope  # also for those who import keys
from serve.gateway.scrypt import ScryptHash

LONGEST_NAME = 100  # characters
_ID = re.compile(r"[0-9a-f]{8}")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_printable)]


class Grant(BaseModel):
    """What somebody may do, until when, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name  # whose it is, for people
    scopes: frozenset[Scope] = Field(min_length=1)
    models: tuple[Name, ...] | None  # names of policies; None: all of them
    created: AwareDatetime
    expires: AwareDatetime | None  # None: never
    revoked: bool
    requests_per_minute: int | None = Field(ge=1)  # None: any number
    concurrency: int | None = Field(ge=1)  # requests at work at a time; None: any number

    @field_serializer("scopes")
    def _in_order(self, scopes: frozenset[Scope]) -> list[str]:
        return sorted(scopes)

    def has_expired(self, now: datetime) -> bool:
        """Whether its time is over at `now`, which knows its time zone."""
        return self.expires is not None and now >= self.expires


class Key(Grant):
    """A key as everybody but its owner may know it."""

    id: str

    def require(self, scope: Scope) -> None:
        """Raise InsufficientScope unless the key may be used for `scope`."""
        if scope not in self.scopes:
            raise InsufficientScope(f"this API key may not be used for this: it lacks the scope {scope.value!r}")

    def may_use(self, model: str) -> bool:
        """Whether the key may ask the policy of this name."""
        return self.models is None or model in self.models


class KeyRecord(Grant):
    """What is stored of a key."""

    hash: ScryptHash

    def key(self, id: str) -> Key:
        """The same without the hash."""
        return Key(id=id, **{name: getattr(self, name) for name in Grant.model_fields})


class NewKey(BaseModel):
    """A key whose secret is known now and never again: `token` is what a client sends."""

    token: str
    key: Key


_RECORDS = TypeAdapter(dict[Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")], KeyRecord])


def parse_records(content: str | bytes, origin: str) -> dict[str, KeyRecord]:
    """The stored keys by id, from JSON. Raises CastorError, which names `origin` and repeats no hash."""
    try:
        records = _RECORDS.validate_json(content, strict=True)
        json.loads(content, object_pairs_hook=_distinct)  # validated above, so it is neither deep nor badly encoded
        return records
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        reason = f"{where}: {found['msg']}" if where else found["msg"]
    except ValueError as error:
        reason = str(error)
    raise CastorError(f"{origin} holds no API keys that can be read ({reason}): mend it, or put a copy in its place")


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice")


class NoKeyFile(CastorError):
    """There is no file of API keys."""


def read_records(path: Path) -> dict[str, KeyRecord]:
    """The stored keys of a file, by id. Raises NoKeyFile, and CastorError when it cannot be read."""
    try:
        return parse_records(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise NoKeyFile(f"there is no file of API keys at {path}: make one with `castor serve keys create`") from None
    except OSError as error:
        raise CastorError(f"the API keys in {path} cannot be read ({error.strerror}): give this user access") from None


def utc_now() -> datetime:
    """The time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class KeyStore:
    """The file of API keys, for whoever administers it. Several may at a time, in several processes.

    `now` gives the time, with its time zone. Every method reads the file anew and raises CastorError where it cannot be
    read or written.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = utc_now) -> None:
        self.path, self._now = path, now

    def list(self) -> list[Key]:
        """All keys, in the order in which they were made. There are none while there is no file."""
        return [record.key(id) for id, record in self._read().items()]

    def create(
        self,
        name: str,
        scopes: frozenset[Scope] = frozenset({Scope.GENERATE}),
        models: tuple[str, ...] | None = None,
        expires: datetime | None = None,
        requests_per_minute: int | None = None,
        concurrency: int | None = None,
    ) -> NewKey:
        """A new key. Raises CastorError also for a name, a number or a time that no key can have."""
        now = self._now()
        if expires is not None and expires <= now:
            raise CastorError(f"the key {name} would have expired when it is made: choose a later time")
        try:
            grant = Grant(
                name=name,
                scopes=scopes,
                models=models,
                created=now,
                expires=expires,
                revoked=False,
                requests_per_minute=requests_per_minute,
                concurrency=concurrency,
            )
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in found["loc"])
            raise CastorError(f"no key can have this {where}: {found['msg']}") from None
        with self._changing() as records:
            return _add(records, grant)

    def revoke(self, id: str) -> Key:
        """Make a key invalid for good; one that already is stays so."""
        with self._changing() as records:
            record = self._find(records, id).model_copy(update={"revoked": True})
            records[id] = record
            return record.key(id)

    def rotate(self, id: str, grace: timedelta | None = None) -> NewKey:
        """A new key that may do what `id` may, and expires when it does; `id` is revoked, or expires after `grace`.

        Raises CastorError also when `id` is no longer valid: what is over is not prolonged.
        """
        with self._changing() as records:
            now, old = self._now(), self._find(records, id)
            if old.revoked or old.has_expired(now):
                raise CastorError(f"the key {id} is {'revoked' if old.revoked else 'expired'}: create a new one")
            if grace is None:
                records[id] = old.model_copy(update={"revoked": True})
            else:
                end = now + grace
                records[id] = old.model_copy(update={"expires": end if old.expires is None else min(old.expires, end)})
            grant = Grant(**{name: getattr(old, name) for name in Grant.model_fields} | {"created": now})
            return _add(records, grant)

    def _read(self) -> dict[str, KeyRecord]:
        try:
            return read_records(self.path)
        except NoKeyFile:
            return {}

    def _find(self, records: dict[str, KeyRecord], id: str) -> KeyRecord:
        if _ID.fullmatch(id) is None:  # it is not repeated: it may be a whole key, and messages end up in logs
            raise CastorError("the id of a key is the 8 hexadecimal digits after castor-: give these alone")
        if id not in records:
            raise CastorError(f"{self.path} has no key {id}: `castor serve keys list` shows those it has")
        return records[id]

    @contextmanager
    def _changing(self) -> Iterator[dict[str, KeyRecord]]:
        """The records, to be changed; written when the body ends well. Nobody else changes the file meanwhile."""
        path = self.path.resolve()  # a link stays a link
        make_folder(path.parent)
        beside = path.with_name(f".{path.name}.lock")
        with refusals_named(beside):
            lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records = self._read()
            yield records
            _write(path, records)
        finally:
            os.close(lock)


def _add(records: dict[str, KeyRecord], grant: Grant) -> NewKey:
    id = secrets.token_hex(4)
    while id in records:
        id = secrets.token_hex(4)
    secret = secrets.token_urlsafe(32)
    records[id] = KeyRecord(hash=ScryptHash.of(secret), **{name: getattr(grant, name) for name in Grant.model_fields})
    return NewKey(token=f"castor-{id}-{secret}", key=records[id].key(id))


def _write(path: Path, records: dict[str, KeyRecord]) -> None:
    """Readable by its owner alone, from before the first byte. A change by root does not take it from its owner."""
    owner = path.stat() if path.exists() else None
    with atomic_write(path, "wb") as handle:
        os.fchmod(handle.fileno(), 0o600)
        if owner is not None and os.geteuid() == 0:
            os.fchown(handle.fileno(), owner.st_uid, owner.st_gid)
        handle.write(_RECORDS.dump_json(records, indent=2) + b"\n")
