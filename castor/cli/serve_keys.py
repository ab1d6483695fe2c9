"""`castor serve keys`: the API keys of the gateway."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from castor.io.files import local_path
from serve.gateway.scope import Scope

if TYPE_CHECKING:
    from serve.gateway.keys import Key, NewKey

app = typer.Typer(
    no_args_is_help=True, help="Make, list, revoke and rotate API keys. A gateway that runs sees it within a second."
)

DEFAULT_FILE = Path("~/.castor/keys.json")  # not in the working folder, which is often a repository
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9][0-9]{0,4})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no span of time: give a number with s, m, h, d or w, e.g. 30d")
    return timedelta(seconds=int(match[1]) * SECONDS[match[2]])


File = Annotated[Path, typer.Option("--file", parser=local_path, metavar="FILE", help="that the keys are in")]
Id = Annotated[str, typer.Argument(metavar="ID", help="the 8 hexadecimal digits after castor-")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="whose key it is, for people")],
    file: File = DEFAULT_FILE,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="what it may be used for (may be repeated); default: generate")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="POLICY", help="only for this one (may be repeated); default: all")
    ] = None,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=_span, metavar="SPAN", help="in so much time, e.g. 12h or 30d; default: never"),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="default: any number")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="requests at a time; default: any number")] = None,
) -> None:
    """Make a key for NAME. It alone goes to stdout, this once: KEY=$(castor serve keys create NAME)."""
    from serve.gateway.keys import KeyStore, utc_now

    scopes = frozenset(scope or [Scope.GENERATE])
    end = utc_now() + expires if expires else None
    models = tuple(model) if model else None
    _tell_new(KeyStore(file).create(name, scopes, models, end, requests_per_minute, concurrency), file)


@app.command("list")
def list_keys(file: File = DEFAULT_FILE) -> None:
    """All keys, without their secrets, which nobody knows any more."""
    from castor.cli.telling import add_row, say, table_of
    from castor.io.terminal import Terminal
    from serve.gateway.keys import KeyStore, utc_now

    keys, terminal, now = KeyStore(file).list(), Terminal(), utc_now()
    if not keys:
        say(terminal, f"there is no key in {file}: make one with `castor serve keys create NAME`")
        return
    table = table_of("id", "name", "state", "for", "policies", "per minute", "at a time", "created", "expires")
    for key in keys:
        numbers = ("any" if number is None else number for number in (key.requests_per_minute, key.concurrency))
        policies = "all" if key.models is None else " ".join(key.models)
        uses = " ".join(sorted(key.scopes))
        times = _time(key.created), "never" if key.expires is None else _time(key.expires)
        add_row(table, key.id, key.name, _state(key, now), uses, policies, *numbers, *times)
    terminal.line(table)


@app.command()
def revoke(id: Id, file: File = DEFAULT_FILE) -> None:
    """Make the key ID invalid for good."""
    from serve.gateway.keys import KeyStore

    key = KeyStore(file).revoke(id)
    typer.echo(f"the key {key.id} ({key.name}) is revoked")


@app.command()
def rotate(
    id: Id,
    file: File = DEFAULT_FILE,
    grace: Annotated[
        timedelta | None,
        typer.Option(parser=_span, metavar="SPAN", help="the old key is valid for so much time; default: not any more"),
    ] = None,
) -> None:
    """Make a key that may do what ID may, and expires when it does; ID becomes invalid. The new one goes to stdout."""
    from serve.gateway.keys import KeyStore

    store = KeyStore(file)
    new = store.rotate(id, grace)
    _tell_new(new, file)
    old = next(key for key in store.list() if key.id == id)
    until = "is revoked" if old.expires is None or old.revoked else f"is valid until {_time(old.expires)}"
    typer.echo(f"the old key {id} {until}", err=True)


def _tell_new(new: NewKey, file: Path) -> None:
    """The token to stdout, so that it can be put into a variable or a pipe; the rest to stderr."""
    key = new.key
    typer.echo(new.token)
    end = "never expires" if key.expires is None else f"expires {_time(key.expires)}"
    typer.echo(f"key {key.id} ({key.name}) is in {file}, for {', '.join(sorted(key.scopes))}; it {end}", err=True)
    typer.echo("keep it now: only its hash is stored, so it cannot be shown again", err=True)


def _state(key: Key, now: datetime) -> str:
    if key.revoked:
        return "revoked"
    return "expired" if key.has_expired(now) else "valid"


def _time(time: datetime) -> str:
    """To the minute, in the zone it is stored in, which is UTC unless somebody changed the file."""
    return time.strftime("%Y-%m-%d %H:%M %Z")
