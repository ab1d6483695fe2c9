"""Calling an ASGI app of this process as a server would: one request in, its answer out as it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

Scope = dict[str, Any]
EVENT_END = b"\n\n"
AT_ONCE = 2  # events of a body that do not wait: the opening of a chat, and its first text


@dataclass(frozen=True)
class Head:
    """Status and media type of an answer: what comes first."""

    status: int
    media_type: str


async def call(
    app: Any, path: str, body: bytes, pause: Callable[[], float] = lambda: 0.0
) -> AsyncGenerator[Head | bytes, None]:
    """POST a JSON body. The first item is the head, each further one all that the app has sent since.

    The first events of a body are handed on at once. Then there are `pause` seconds from each part to the next, unless
    the app is done: what it sends meanwhile goes together.

    A caller that stops listening disconnects: the app is told, and then cancelled.
    """
    sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    unread = [{"type": "http.request", "body": body, "more_body": False}]
    gone, done = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if unread:
            return unread.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(path, body), receive, sent.put)
        finally:
            done.set()
            sent.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        async with aclosing(_bodies(sent, done, pause)) as items:
            async for item in items:
                yield item
        await task  # an error of the app is the caller's
    finally:
        gone.set()
        task.cancel()


async def _bodies(
    sent: asyncio.Queue[dict[str, Any] | None], done: asyncio.Event, pause: Callable[[], float]
) -> AsyncGenerator[Head | bytes, None]:
    waiting: list[bytes] = []
    events = 0
    while True:
        message = await sent.get()
        while message is not None:
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                yield Head(message["status"], headers.get(b"content-type", b"").decode("latin-1"))
            elif message["type"] == "http.response.body" and message.get("body"):
                waiting.append(message["body"])
            if sent.empty():
                break
            message = sent.get_nowait()
        if waiting:
            part, waiting = b"".join(waiting), []
            events += part.count(EVENT_END)
            yield part
        if message is None:
            return
        if events >= AT_ONCE and (seconds := pause()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), seconds)


def _scope(path: str, body: bytes) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
        "state": {},
    }
