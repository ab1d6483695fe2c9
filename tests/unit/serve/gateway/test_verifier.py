"""Who is let in, what the others are told, and what a change of the file does to a running server."""

import asyncio
import os
import string
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.io.errors import CastorError
from serve.gateway import verifier as module
from serve.gateway.errors import InvalidKey, KeysUnreadable, Overloaded, RequestError
from serve.gateway.keys import KeyStore, NewKey
from serve.gateway.scope import Scope
from serve.gateway.scrypt import ScryptHash
from serve.gateway.verifier import EXPIRED, INVALID, NO_KEY, Verifier


class Time:
    """A clock and a calendar that go on when told to."""

    def __init__(self) -> None:
        self.seconds, self.date = 0.0, datetime(2030, 1, 1, tzinfo=UTC)

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.date

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        self.date += timedelta(seconds=seconds)


class Setting:
    """A file with one key, and a verifier of it, on a clock of their own."""

    def __init__(self, path: Path) -> None:
        self.time, self.path = Time(), path
        self.store = KeyStore(path, self.time.now)
        self.new = self.store.create("ann", frozenset({Scope.GENERATE, Scope.VOTE}))
        self.verifier = Verifier.from_file(path, self.time.clock, self.time.now)

    def later(self) -> None:
        self.time.pass_by(module.LOOK_EVERY_S)

    async def refusal(self, token: str | None) -> RequestError:
        with pytest.raises(RequestError) as error:
            await self.verifier.verify(token)
        return error.value


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path / "keys.json")


@pytest.fixture
def scrypts(monkeypatch: pytest.MonkeyPatch) -> list[ScryptHash]:
    """The hashes that secrets are compared with from now on."""
    seen: list[ScryptHash] = []
    real = ScryptHash.matches

    def counted(self: ScryptHash, secret: str) -> bool:
        seen.append(self)
        return real(self, secret)

    monkeypatch.setattr(ScryptHash, "matches", counted)
    return seen


def _with_secret(new: NewKey, secret: str) -> str:
    return f"castor-{new.key.id}-{secret}"


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


def test_a_valid_key(setting: Setting, scrypts: list[ScryptHash]) -> None:
    async def body() -> None:
        for _ in range(3):
            assert await setting.verifier.verify(setting.new.token) == setting.new.key
        assert len(scrypts) == 1  # the later requests cost none

    run(body)


def test_later_requests_take_no_time(setting: Setting) -> None:
    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        start = time.perf_counter()
        for _ in range(1000):
            await setting.verifier.verify(setting.new.token)
        assert time.perf_counter() - start < 1.0  # a scrypt each would be 50 s

    run(body)


def test_unknown_wrong_and_revoked_are_not_told_apart_and_cost_the_same(
    setting: Setting, scrypts: list[ScryptHash]
) -> None:
    async def body() -> None:
        revoked = setting.store.create("bob")
        setting.store.revoke(revoked.key.id)
        setting.later()
        secret = setting.new.token.split("-", 2)[2]
        wrong = _with_secret(setting.new, secret[::-1])
        unknown = f"castor-{'0' * 8}-{secret}"
        for token in (unknown, wrong, revoked.token):
            scrypts.clear()
            error = await setting.refusal(token)
            assert isinstance(error, InvalidKey)
            assert error.message == INVALID
            (used,) = scrypts
            assert (used.n, used.r, used.p, len(used.digest)) == (2**14, 8, 1, 64)
        scrypts.clear()
        await setting.verifier.verify(setting.new.token)
        await setting.refusal(wrong)  # also when the right one is known
        assert len(scrypts) == 2

    run(body)


def test_the_right_secret_alone_learns_that_it_has_expired(setting: Setting) -> None:
    async def body() -> None:
        new = setting.store.create("bob", expires=setting.time.now() + timedelta(seconds=10))
        setting.later()
        await setting.verifier.verify(new.token)
        setting.time.pass_by(8.999)
        await setting.verifier.verify(new.token)
        setting.time.pass_by(0.001)
        assert (await setting.refusal(new.token)).message == EXPIRED
        assert (await setting.refusal(_with_secret(new, "A" * 43))).message == INVALID
        setting.store.revoke(new.key.id)
        setting.later()
        assert (await setting.refusal(new.token)).message == INVALID

    run(body)


def test_no_key_and_malformed_ones(setting: Setting, scrypts: list[ScryptHash]) -> None:
    async def body() -> None:
        assert (await setting.refusal(None)).message == NO_KEY
        token = setting.new.token
        for malformed in (
            "", " ", "castor-", token[:-1], token + "A", token + "\n", " " + token, token.upper(), "x" * 201,
            token + "x" * 10**6, token.replace("castor", "cästor"), "castor-" + "１" * 8 + token[15:], "\ud800" * 10,
            "castor-\0" + token[8:], token.replace("castor", "openai"),
        ):  # fmt: skip
            error = await setting.refusal(malformed)
            assert (type(error), error.message, error.status) == (InvalidKey, INVALID, 401)
        assert scrypts == []

    run(body)


TOKENS = st.text(max_size=220) | st.from_regex(r"castor-[0-9a-f]{7,9}-[A-Za-z0-9_-]{42,44}\Z")


def test_no_token_is_an_exception_of_another_kind(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ScryptHash, "matches", lambda self, secret: not secret.isascii())  # never, and fast

    @given(TOKENS)
    def refused(token: str) -> None:
        assert type(asyncio.run(setting.refusal(token))) is InvalidKey

    refused()


def test_a_token_is_not_kept(setting: Setting) -> None:
    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        secret = setting.new.token.split("-", 2)[2]
        assert secret not in repr(vars(setting.verifier))

    run(body)


def test_requests_with_one_key_share_a_scrypt_and_outlive_each_other(
    setting: Setting, scrypts: list[ScryptHash]
) -> None:
    async def body() -> None:
        verify = setting.verifier.verify
        tasks = [asyncio.create_task(verify(setting.new.token)) for _ in range(200)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # the one that began it
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1:] == [setting.new.key] * 199
        assert len(scrypts) == 1

    run(body)


def test_a_flood_of_wrong_keys_is_bounded_and_leaves_those_already_known_alone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CHECKS", 4)
    at_work, most = 0, 0
    real = ScryptHash.matches

    def watched(self: ScryptHash, secret: str) -> bool:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        try:
            return real(self, secret)
        finally:
            at_work -= 1

    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        monkeypatch.setattr(ScryptHash, "matches", watched)
        wrong = [_with_secret(setting.new, letter * 43) for letter in string.ascii_letters[:12]]
        flood = asyncio.gather(*(setting.refusal(token) for token in wrong))
        await asyncio.sleep(0)
        assert await setting.verifier.verify(setting.new.token) == setting.new.key
        kinds = [type(error) for error in await flood]
        assert kinds == [InvalidKey] * 4 + [Overloaded] * 8
        assert most <= module.SCRYPTS
        assert (await setting.refusal(wrong[0])).message == INVALID  # there is room again

    run(body)


def test_a_change_of_the_file_is_seen_within_a_second(setting: Setting) -> None:
    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        setting.store.revoke(setting.new.key.id)
        other = setting.store.create("bob")
        setting.time.pass_by(module.LOOK_EVERY_S / 2)
        await setting.verifier.verify(setting.new.token)  # not looked at yet
        setting.time.pass_by(module.LOOK_EVERY_S / 2)
        assert (await setting.refusal(setting.new.token)).message == INVALID
        assert (await setting.verifier.verify(other.token)).name == "bob"

    run(body)


def test_rotation_on_a_running_server(setting: Setting) -> None:
    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        new = setting.store.rotate(setting.new.key.id, grace=timedelta(minutes=1))
        setting.later()
        assert (await setting.verifier.verify(setting.new.token)).id == setting.new.key.id
        assert (await setting.verifier.verify(new.token)).id == new.key.id
        setting.time.pass_by(60)
        assert (await setting.refusal(setting.new.token)).message == EXPIRED

    run(body)


def test_a_revocation_while_the_scrypt_runs(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ScryptHash.matches

    def slow(self: ScryptHash, secret: str) -> bool:
        setting.store.revoke(setting.new.key.id)
        setting.later()
        return real(self, secret)

    monkeypatch.setattr(ScryptHash, "matches", slow)
    assert asyncio.run(setting.refusal(setting.new.token)).message == INVALID


def test_the_id_with_another_secret(setting: Setting) -> None:
    """As after a copy of the file was put back: what was verified is no longer what is stored."""

    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        (record,) = module.read_records(setting.path).values()
        changed = record.model_copy(update={"hash": ScryptHash.of("another")})
        setting.path.write_text(f'{{"{setting.new.key.id}": {changed.model_dump_json()}}}')
        setting.later()
        assert (await setting.refusal(setting.new.token)).message == INVALID

    run(body)


@pytest.mark.parametrize("damage", ["truncate", "remove", "folder"])
def test_a_damaged_file_lets_nobody_in_until_it_is_mended(
    setting: Setting, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        await setting.verifier.verify(setting.new.token)
        good, state = setting.path.read_bytes(), setting.path.stat()
        if damage == "truncate":
            setting.path.write_bytes(good[:-10])
        else:
            setting.path.unlink()
            if damage == "folder":
                setting.path.mkdir()
        for _ in range(3):
            setting.later()
            error = await setting.refusal(setting.new.token)
            assert (type(error), error.status, error.code) == (KeysUnreadable, 503, "keys_unreadable")
            assert str(setting.path) not in error.message
            assert error.retry_after is not None
        assert [str(setting.path) in line for line in caplog.messages] == [True]  # once, for whoever runs it
        if damage == "folder":
            setting.path.rmdir()
        setting.path.write_bytes(good)
        os.utime(setting.path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a restored backup has it
        setting.later()
        assert await setting.verifier.verify(setting.new.token) == setting.new.key

    run(body)


def test_a_file_that_is_damaged_from_the_start(tmp_path: Path) -> None:
    with pytest.raises(CastorError, match="make one with `castor serve keys create`"):
        Verifier.from_file(tmp_path / "keys.json")
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(CastorError, match=str(tmp_path)):
        Verifier.from_file(tmp_path / "keys.json")


def test_keys_from_the_environment(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", setting.path.read_text())
    verifier = Verifier.from_environment("KEYS", setting.time.now)
    setting.path.unlink()
    assert asyncio.run(verifier.verify(setting.new.token)) == setting.new.key
    monkeypatch.setenv("KEYS", '{"a": "secret"}')
    with pytest.raises(CastorError, match=r"^\$KEYS holds no API keys") as error:
        Verifier.from_environment("KEYS")
    assert "secret" not in str(error.value)
    for unset in (lambda: monkeypatch.setenv("KEYS", ""), lambda: monkeypatch.delenv("KEYS")):
        unset()
        with pytest.raises(CastorError, match="KEYS is not set or empty: put"):
            Verifier.from_environment("KEYS")
