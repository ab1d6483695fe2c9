"""Calling an app of this process: what comes first, what comes together, and how either side ends."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from serve.asgi import Head, call

Receive, Send = Callable[[], Awaitable[dict[str, Any]]], Callable[[dict[str, Any]], Awaitable[None]]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
HEAD = Head(200, "text/event-stream")


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def items_of(app: Any, body: bytes = b"{}") -> list[Head | bytes]:
    async with aclosing(call(app, "/path", body)) as items:
        return [item async for item in items]


def test_an_app_of_fastapi() -> None:
    class Body(BaseModel):
        text: str

    app = FastAPI()

    @app.post("/v1/echo")
    async def echo(body: Body) -> JSONResponse:
        return JSONResponse({"text": body.text}, 201)

    @app.post("/v1/stream")
    async def stream(body: Body) -> StreamingResponse:
        async def parts() -> Any:
            for letter in body.text:
                yield letter

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def post(path: str, body: bytes) -> tuple[Head | bytes, bytes]:
        head, *parts = [item async for item in call(app, path, body)]
        return head, b"".join(each for each in parts if isinstance(each, bytes))

    text = '{"text": "größe"}'.encode()
    assert asyncio.run(post("/v1/echo", text)) == (Head(201, "application/json"), '{"text":"größe"}'.encode())
    head, content = asyncio.run(post("/v1/stream", text))
    assert isinstance(head, Head)
    assert (head.media_type.partition(";")[0], content.decode()) == ("text/event-stream", "größe")
    head, _ = asyncio.run(post("/v1/echo", b"{"))
    assert isinstance(head, Head)
    assert head.status == 422


def test_what_the_app_is_told() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.update(scope)
        seen["message"] = await receive()
        await send(START)

    assert asyncio.run(items_of(app, b"12345")) == [HEAD]
    assert (seen["method"], seen["path"], seen["raw_path"]) == ("POST", "/path", b"/path")
    assert dict(seen["headers"]) == {b"content-type": b"application/json", b"content-length": b"5"}
    assert seen["message"] == {"type": "http.request", "body": b"12345", "more_body": False}


def test_what_was_sent_meanwhile_comes_together() -> None:
    """The head by itself, and first; then whatever has come in since the caller last asked. Empty parts are none."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(START)
        for letter in b"abc":
            await send(part(bytes([letter])))
        await send(part(b""))
        await asyncio.sleep(0.05)
        await send(part(b"d"))
        await asyncio.sleep(0.05)
        await send(part(b"ef", more=False))

    assert asyncio.run(items_of(app)) == [HEAD, b"abc", b"d", b"ef"]

    async def slowly() -> list[Head | bytes]:
        found = []
        async with aclosing(call(app, "/path", b"")) as items:
            async for item in items:
                found.append(item)
                await asyncio.sleep(0.3)
        return found

    assert asyncio.run(slowly()) == [HEAD, b"abcdef"]


@pytest.mark.parametrize("sent", [[], [START], [START, part(b"a")]])
def test_an_error_of_the_app_is_the_callers(sent: list[dict[str, Any]]) -> None:
    """After all that the app has sent until then."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        for message in sent:
            await send(message)
        raise KeyError("broken")

    async def collect() -> list[Head | bytes]:
        found: list[Head | bytes] = []
        try:
            async for item in call(app, "/path", b""):
                found.append(item)
        except KeyError:
            return found
        raise AssertionError("the error of the app is lost")

    assert asyncio.run(collect()) == [HEAD, b"a"][: len(sent)]


def test_an_app_without_an_answer_gives_nothing() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await receive()

    assert asyncio.run(items_of(app)) == []


@pytest.mark.parametrize("listens", [True, False])
def test_a_caller_that_stops_listening_ends_the_app(listens: bool) -> None:
    """One that waits for the disconnect is told, one that does not is cancelled."""
    ended: list[str] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        try:
            assert (await receive())["type"] == "http.request"
            await send(START)
            await (receive() if listens else asyncio.sleep(60))
            ended.append("told")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def leave() -> None:
        items = call(app, "/path", b"")
        assert await anext(items) == HEAD
        await items.aclose()
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(leave())
    assert ended in (["told"], ["cancelled"]) if listens else ended == ["cancelled"]


def test_a_caller_that_is_cancelled_ends_the_app() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("app")

    async def cancel() -> None:
        listening = asyncio.create_task(items_of(app))
        await asyncio.sleep(0.05)
        listening.cancel()
        await asyncio.wait([listening])
        for _ in range(5):
            await asyncio.sleep(0)
        assert (listening.cancelled(), ended) == (True, ["app"])

    asyncio.run(cancel())


@pytest.mark.parametrize(
    ("sent", "parts"),
    [
        (["a", "b", "c", "d", "e"], ["a", "b", "cde"]),
        (["ab", "c", "d", "e"], ["ab", "cde"]),  # a chat's opening comes with its first text
        (["a", "bc", "d", "e"], ["a", "bc", "de"]),
        (["abc"], ["abc"]),
    ],
)
def test_the_first_events_go_at_once_then_they_wait_for_each_other_and_the_end_for_nothing(
    sent: list[str], parts: list[str]
) -> None:
    def events(letters: str) -> bytes:
        return b"".join(f"data: {letter}\n\n".encode() for letter in letters)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for letters in sent:
            await send({"type": "http.response.body", "body": events(letters), "more_body": True})
            await asyncio.sleep(0.001)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def run() -> list[Any]:
        return [item async for item in call(app, "/x", b"{}", lambda: 3600.0)]

    head, *found = asyncio.run(asyncio.wait_for(run(), 60))
    assert isinstance(head, Head)
    assert found == [events(letters) for letters in parts]
