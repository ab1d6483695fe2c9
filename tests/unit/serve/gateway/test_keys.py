"""The file of API keys: what is in it, who may read it, and what happens when several change it."""

import json
import multiprocessing
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from castor.io.errors import CastorError
from serve.gateway.errors import InsufficientScope
from serve.gateway.keys import KeyStore, NoKeyFile, parse_records, read_records
from serve.gateway.scope import Scope
from serve.gateway.scrypt import ScryptHash

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "made" / "keys.json", now=lambda: NOW)


def test_a_key_and_what_is_stored_of_it(store: KeyStore) -> None:
    new = store.create("ann", frozenset({Scope.JUDGE, Scope.GENERATE}), ("sft",), NOW + DAY, 60, 2)
    assert re.fullmatch(r"castor-[0-9a-f]{8}-[A-Za-z0-9_-]{43}", new.token)
    assert new.token.startswith(f"castor-{new.key.id}-")
    text = store.path.read_text()
    (stored,) = json.loads(text).values()
    hash = stored.pop("hash")
    assert stored == {
        "name": "ann", "scopes": ["generate", "judge"], "models": ["sft"],
        "created": "2030-01-31T12:00:00Z", "expires": "2030-02-01T12:00:00Z",
        "revoked": False, "requests_per_minute": 60, "concurrency": 2,
    }  # fmt: skip
    assert set(hash) == {"n", "r", "p", "salt", "digest"}
    secret = new.token.split("-", 2)[2]
    assert secret not in text
    assert ScryptHash(**hash).matches(secret)
    assert not ScryptHash(**hash).matches(secret[:-1] + "!")
    assert store.list() == [new.key]
    assert "secret" not in new.key.model_dump()


def test_the_hash_is_scrypts() -> None:
    """RFC 7914, section 12: the third vector."""
    digest = (
        "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
        "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
    )
    salt = b"SodiumChloride".hex()
    hash = ScryptHash.model_construct(n=16384, r=8, p=1, salt=salt, digest=digest)
    assert hash.matches("pleaseletmein")


def test_two_hashes_of_one_secret_differ() -> None:
    first, second = ScryptHash.of("s"), ScryptHash.of("s")
    assert first.salt != second.salt
    assert first.digest != second.digest


def test_only_the_owner_reads_the_file(store: KeyStore) -> None:
    before = os.umask(0)
    try:
        store.create("ann")
        assert store.path.stat().st_mode & 0o777 == 0o600
        store.path.chmod(0o644)  # as an editor may leave it
        store.create("bob")
        assert store.path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_leaves_the_file_to_its_owner(store: KeyStore) -> None:
    id = store.create("ann").key.id
    os.chown(store.path, 1234, 1234)
    store.revoke(id)
    assert (store.path.stat().st_uid, store.path.stat().st_gid) == (1234, 1234)


def test_a_link_to_the_file_stays_one(store: KeyStore, tmp_path: Path) -> None:
    store.create("ann")
    link = tmp_path / "link.json"
    link.symlink_to(store.path)
    KeyStore(link).create("bob")
    assert link.is_symlink()
    assert [key.name for key in store.list()] == ["ann", "bob"]


def test_revoked_stays_revoked(store: KeyStore) -> None:
    first, second = store.create("ann").key, store.create("bob").key
    assert store.revoke(first.id).revoked
    assert store.revoke(first.id).revoked
    assert [key.revoked for key in store.list()] == [True, False]
    assert store.list()[1] == second


@pytest.mark.parametrize(
    ("expires", "grace", "end"),
    [(None, DAY, NOW + DAY), (NOW + 3 * DAY, DAY, NOW + DAY), (NOW + DAY, 3 * DAY, NOW + DAY)],
)
def test_rotation_with_grace(store: KeyStore, expires: datetime | None, grace: timedelta, end: datetime) -> None:
    old = store.create("ann", frozenset({Scope.VOTE}), ("sft",), expires, 5, 1)
    new = store.rotate(old.key.id, grace)
    assert new.token != old.token
    assert new.key.id != old.key.id
    assert new.key.model_copy(update={"id": old.key.id}) == old.key
    assert store.list() == [old.key.model_copy(update={"expires": end}), new.key]


def test_rotation_revokes_at_once_by_default_and_prolongs_nothing(store: KeyStore) -> None:
    old = store.create("ann", expires=NOW + DAY)
    new = store.rotate(old.key.id)
    assert [key.revoked for key in store.list()] == [True, False]
    assert new.key.expires == NOW + DAY
    with pytest.raises(CastorError, match="is revoked: create a new one"):
        store.rotate(old.key.id)
    with pytest.raises(CastorError, match="is expired: create a new one"):
        KeyStore(store.path, now=lambda: NOW + DAY).rotate(new.key.id)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "this name"),
        ({"name": "a\x1b[2J"}, "cannot be printed"),
        ({"name": "a" * 101}, "this name"),
        ({"scopes": frozenset()}, "this scopes"),
        ({"models": ("a\nb",)}, r"this models\.0"),
        ({"requests_per_minute": 0}, "this requests_per_minute"),
        ({"concurrency": -1}, "this concurrency"),
        ({"expires": NOW}, "expired when it is made"),
    ],
)
def test_keys_that_cannot_be(store: KeyStore, options: dict, said: str) -> None:
    with pytest.raises(CastorError, match=said):
        store.create(**{"name": "ann"} | options)
    assert not store.path.exists()


def test_an_id_that_is_none_is_not_repeated(store: KeyStore) -> None:
    token = store.create("ann").token
    for change in (store.revoke, store.rotate):
        with pytest.raises(CastorError) as error:
            change(token)
        assert token not in str(error.value)
        with pytest.raises(CastorError, match=f"{store.path} has no key 0123abcd"):
            change("0123abcd")


def test_scopes_and_models(store: KeyStore) -> None:
    judge = store.create("ann", frozenset({Scope.JUDGE}), ("sft",)).key
    judge.require(Scope.JUDGE)
    with pytest.raises(InsufficientScope, match="lacks the scope 'generate'"):
        judge.require(Scope.GENERATE)
    assert judge.may_use("sft")
    assert not judge.may_use("ppo")
    assert store.create("bob").key.may_use("ppo")


def test_no_file_is_no_key(store: KeyStore) -> None:
    assert store.list() == []
    with pytest.raises(NoKeyFile, match=f"no file of API keys at {store.path}: make one with"):
        read_records(store.path)


def _create(path: Path, count: int) -> None:
    for number in range(count):
        KeyStore(path).create(f"{os.getpid()}-{number}")


def test_no_key_is_lost_when_several_processes_make_some(tmp_path: Path) -> None:
    spawn, path = multiprocessing.get_context("spawn"), tmp_path / "keys.json"
    processes = [spawn.Process(target=_create, args=(path, 4)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(KeyStore(path).list()) == 12


def _stored(store: KeyStore) -> dict:
    store.create("ann")
    return json.loads(store.path.read_text())


def _with(stored: dict, **values: object) -> str:
    (id,) = stored
    return json.dumps({id: stored[id] | values})


def test_damage_is_one_sentence_that_names_the_file(store: KeyStore) -> None:
    stored = _stored(store)
    (id,) = stored
    good = json.dumps(stored)
    hash = stored[id]["hash"]
    damaged = [
        "", "[]", "null", good[:-5], good + "x", good.encode()[:-2] + b"\xff}", "[" * 100_000,
        json.dumps({"../x": stored[id]}), f'{{"{id}": {json.dumps(stored[id])}, "{id}": {json.dumps(stored[id])}}}',
        good.replace('"revoked": false', '"revoked": true, "revoked": false'),
        _with(stored, revoked="no"), _with(stored, revoked=None), _with(stored, scopes=["root"]),
        _with(stored, scopes=[]), _with(stored, expires="2030-01-01T00:00:00"), _with(stored, expires="soon"),
        _with(stored, concurrency=0), _with(stored, concurrency=True), _with(stored, more=1), _with(stored, hash=None),
        _with(stored, hash=hash | {"n": 3}), _with(stored, hash=hash | {"n": 2**40}),
        _with(stored, hash=hash | {"digest": ""}), _with(stored, hash=hash | {"salt": "zz" * 16}),
    ]  # fmt: skip
    for content in damaged:
        store.path.write_bytes(content if isinstance(content, bytes) else content.encode())
        for attempt in (store.list, lambda: store.create("bob"), lambda: store.revoke(id)):
            with pytest.raises(CastorError) as error:
                attempt()
            said = str(error.value)
            assert said.startswith(f"{store.path} holds no API keys that can be read (")
            assert said.endswith("mend it, or put a copy in its place")
            assert "\n" not in said
            assert hash["digest"] not in said
        assert store.path.read_bytes() == (content if isinstance(content, bytes) else content.encode())


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_whatever_is_in_the_file_is_keys_or_a_castor_error(content: bytes) -> None:
    try:
        records = parse_records(content, "f")
    except CastorError:
        return
    assert records == {}


def test_places_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CastorError, match="Is a directory"):
        KeyStore(tmp_path).list()
    with pytest.raises(CastorError, match=f"cannot write {tmp_path / 'file'}"):
        KeyStore(tmp_path / "file" / "keys.json").create("ann")
