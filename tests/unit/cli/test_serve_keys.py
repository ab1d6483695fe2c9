"""`castor serve keys`, in this process and on a real file."""

import asyncio
import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from castor.cli.serve_keys import app
from castor.io.errors import CastorError
from serve.gateway.errors import InvalidKey
from serve.gateway.keys import KeyStore, utc_now
from serve.gateway.scope import Scope
from serve.gateway.verifier import Verifier
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def keys(*arguments: str) -> tuple[str, str]:
    """What a command says on stdout and on stderr."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


def _refused(*arguments: str) -> str:
    """What a command says of arguments it does not take."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", result.stderr).split())


def _is_valid(file: Path, token: str) -> bool:
    try:
        asyncio.run(Verifier.from_file(file).verify(token))
    except InvalidKey:
        return False
    return True


def test_the_key_alone_goes_to_stdout_and_opens_the_door(home: Path) -> None:
    out, told = keys("create", "ann")
    assert re.fullmatch(r"castor-[0-9a-f]{8}-[A-Za-z0-9_-]{43}\n", out)
    assert "it cannot be shown again" in told
    assert out.strip() not in told
    file = home / ".castor" / "keys.json"
    assert str(file) in told
    assert file.stat().st_mode & 0o777 == 0o600
    assert _is_valid(file, out.strip())


def test_every_option_of_a_key(home: Path) -> None:
    file = home / "elsewhere" / "k.json"
    before = utc_now()
    keys(
        "create", "bob", "--file", str(file), "--scope", "judge", "--scope", "vote", "--model", "sft",
        "--model", "ppo_lag", "--expires", "30d", "--requests-per-minute", "60", "--concurrency", "4",
    )  # fmt: skip
    (key,) = KeyStore(file).list()
    assert (key.name, key.scopes, key.models) == ("bob", {Scope.JUDGE, Scope.VOTE}, ("sft", "ppo_lag"))
    assert (key.requests_per_minute, key.concurrency, key.revoked) == (60, 4, False)
    assert key.expires is not None
    assert before <= key.expires - timedelta(days=30) <= utc_now()


def test_defaults_of_a_key(home: Path) -> None:
    keys("create", "ann")
    (key,) = KeyStore(home / ".castor" / "keys.json").list()
    assert (key.scopes, key.models, key.expires) == ({Scope.GENERATE}, None, None)
    assert (key.requests_per_minute, key.concurrency) == (None, None)


def test_the_list_shows_no_secret(home: Path) -> None:
    assert "there is no key" in keys("list")[0]
    token = keys("create", "[red]ann[/]", "--scope", "metrics", "--expires", "1w")[0].strip()
    keys("create", "bob", "--model", "sft", "--concurrency", "3")
    file = home / ".castor" / "keys.json"
    stored = json.loads(file.read_text())
    first, second = stored
    stored[second]["expires"] = stored[second]["created"]
    file.write_text(json.dumps(stored))
    shown = keys("list")[0]
    lines = [" ".join(line.split()) for line in shown.splitlines() if line.strip()]
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    assert re.fullmatch(rf"{first} \[red\]ann\[/\] valid metrics all any any {date} {date}", lines[-2])
    assert re.fullmatch(rf"{second} bob expired generate sft any 3 {date} {date}", lines[-1])
    keys("revoke", first)
    shown += keys("list")[0]
    assert "revoked" in shown
    hash = stored[first]["hash"]
    assert not any(secret in shown for secret in (token[16:], hash["salt"], hash["digest"]))


def test_revoke(home: Path) -> None:
    token = keys("create", "ann")[0].strip()
    file = home / ".castor" / "keys.json"
    assert keys("revoke", token[7:15])[0] == f"the key {token[7:15]} (ann) is revoked\n"
    assert not _is_valid(file, token)


def test_rotate(home: Path) -> None:
    file = home / ".castor" / "keys.json"
    first = keys("create", "ann", "--scope", "judge")[0].strip()
    out, told = keys("rotate", first[7:15])
    second = out.strip()
    assert f"the old key {first[7:15]} is revoked" in told
    assert [_is_valid(file, token) for token in (first, second)] == [False, True]
    out, told = keys("rotate", second[7:15], "--grace", "2h")
    (until,) = re.findall(r"is valid until (\S+ \S+) UTC", told)
    assert abs(datetime.fromisoformat(f"{until}Z") - utc_now() - timedelta(hours=2)) < timedelta(minutes=2)
    assert [_is_valid(file, token) for token in (first, second, out.strip())] == [False, True, True]


@pytest.mark.parametrize("span", ["", "30", "d", "0d", "-1d", "1.5d", "30 d", "30y", "100000w", "३d", "30d\n"])
def test_no_span_of_time(home: Path, span: str) -> None:
    assert "is no span of time: give a number with s, m, h, d or w" in _refused("create", "ann", "--expires", span)
    assert not (home / ".castor").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--scope", "root"], ["--requests-per-minute", "0"], ["--concurrency", "x"], ["--expires"]],
)
def test_options_that_are_refused(home: Path, arguments: list[str]) -> None:
    _refused("create", "ann", *arguments)
    assert not (home / ".castor").exists()


def test_mistakes_are_castor_errors(home: Path) -> None:
    token = keys("create", "ann")[0].strip()
    with pytest.raises(CastorError, match="has no key 00000000"):
        keys("revoke", "00000000")
    with pytest.raises(CastorError, match="give these alone") as error:
        keys("rotate", token)
    assert token not in str(error.value)
    with pytest.raises(CastorError, match="no key can have this name"):
        keys("create", "a\nb")
    (home / ".castor" / "keys.json").write_text("{")
    for command in (["list"], ["create", "bob"], ["revoke", token[7:15]]):
        with pytest.raises(CastorError, match=r"keys\.json holds no API keys that can be read"):
            keys(*command)


def test_importing_the_commands_is_cheap() -> None:
    slow = ("torch", "ray", "vllm", "fastapi", "pydantic", "rich", "numpy")
    script = f"import sys, castor.cli.serve_keys; print([name for name in {slow!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
