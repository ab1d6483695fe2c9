"""`castor chat URL`: talk to a served policy in the terminal, and see what its guard says."""

from __future__ import annotations

import getpass
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from castor.io.errors import CastorError

if TYPE_CHECKING:
    from openai import OpenAI

KEY = "CASTOR_API_KEY"
TIMEOUT_S = 600.0


def chat(
    url: Annotated[str, typer.Argument(metavar="URL", help="of a gateway, e.g. http://127.0.0.1:8000")],
    model: Annotated[str | None, typer.Option("--model", help="default: the first that is offered")] = None,
    guard: Annotated[str | None, typer.Option("--guard", help="a stricter guard than the configured one")] = None,
) -> None:
    """Chat with a served policy. The key is read from CASTOR_API_KEY, or asked for where one is needed."""
    from openai import APIError, OpenAI
    from rich.console import Console

    console = Console()
    client = OpenAI(base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1", api_key=os.environ.get(KEY) or "none",
                    timeout=TIMEOUT_S, max_retries=0)  # fmt: skip
    try:
        client, names = _models(client)
    except APIError as error:
        raise CastorError(f"{url} cannot be talked to: {error}") from None
    if not names:
        raise CastorError(f"{url} offers this key no model: ask whoever runs it")
    chosen = model or names[0]
    console.print(f"[bold]{chosen}[/] at {url}  [dim]an empty line ends it; others: {', '.join(names)}[/]")
    turns: list[dict[str, str]] = []
    while question := _question(console):
        turns.append({"role": "user", "content": question})
        try:
            said = _answer(client, chosen, turns, guard, console)
        except APIError as error:
            console.print(f"\n[red]{error.message}[/]", highlight=False)
            turns.pop()
            continue
        turns.append({"role": "assistant", "content": said})


def _question(console: Any) -> str:
    """What is asked next; an end of the input is an empty line."""
    try:
        return str(console.input("[bold cyan]you[/] ")).strip()
    except EOFError:
        console.print()
        return ""


def _models(client: OpenAI) -> tuple[OpenAI, list[str]]:
    """The models that are offered; a key is asked for when one is needed. Raises openai.APIError."""
    from openai import AuthenticationError

    try:
        return client, [model.id for model in client.models.list()]
    except AuthenticationError:
        client = client.with_options(api_key=getpass.getpass("API key: "))
        return client, [model.id for model in client.models.list()]


def _answer(client: OpenAI, model: str, turns: list[dict[str, str]], guard: str | None, console: Any) -> str:
    """Print an answer as it comes, and the verdict behind it."""
    options: Any = {"castor": {"guard": guard}} if guard else {}
    messages: Any = turns
    stream = client.chat.completions.create(model=model, messages=messages, stream=True, extra_body=options)
    said, castor, reason = "", dict[str, Any](), None
    for chunk in stream:
        for choice in chunk.choices:
            # a terminal obeys control characters, and these were written by a model
            text = "".join(sign for sign in choice.delta.content or "" if sign.isprintable() or sign in "\n\t")
            said += text
            console.print(text, end="", markup=False, highlight=False)
            castor = (choice.model_extra or {}).get("castor", castor)
            reason = choice.finish_reason or reason
    console.print()
    line = _verdict(castor, reason)
    if line:
        console.print(f"[dim]{line}[/]", highlight=False)
    return said


def _verdict(castor: dict[str, Any], reason: str | None) -> str:
    """What is told of an answer, in one line."""
    if "judged" not in castor:
        return ""
    if not castor["judged"]:
        return f"not judged: {castor['error']['message']}"
    parts = ["withheld" if castor["withheld"] else "unsafe" if castor["unsafe"] else "safe"]
    parts += [f"{name} {castor[name]:.2f}" for name in ("cost", "reward") if castor[name] is not None]
    parts += [f"severity {castor['severity']}"] if castor["severity"] is not None else []
    parts += castor["flagged"] + (["cut off at its longest"] if reason == "length" else [])
    return ", ".join(parts)
