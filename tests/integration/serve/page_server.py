"""A small real HTTP server that speaks the gateway's API with scripted answers, to bring about each state of the page.

The first word of a question says what happens to it; see `SCRIPTS`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

PAGE = Path(__file__).parents[3] / "serve" / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MEDIA = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
REFUSAL = "I cannot give this answer, because it may cause harm. I am glad to help in another way."
CATEGORIES = {
    "drug_abuse,weapons,banned_substance": 0.91,
    "violence,aiding_and_abetting,incitement": 0.64,
    "non_violent_unethical_behavior": 0.22,
    "self_harm": 0.08,
    "privacy_violation": 0.004,
    "animal_abuse": 0.001,
}
MARKDOWN = """# A heading
Some **bold**, some *italic* and `inline <b>code</b>`.

<img src="/stolen" onerror="window.pwned = true"><script>window.pwned = true</script>
[click me](javascript:window.pwned=true) and ![an image](/stolen.png)

- first
- second
  1. nested

```python
print("a line of code that is much longer than a phone is wide, so that it has to scroll sideways and not the page")
```
"""
SAFE_TEXTS = [
    "Mix **200 g of flour**, 100 g of sugar and two eggs in a bowl until there are no lumps left. ",
    "Pour it into a buttered tin, and bake it at 180 °C for 35 minutes. ",
    "It is done when a wooden stick comes out dry.\n\n1. Let it cool.\n2. Dust it with sugar.",
]

Event = dict[str, Any] | str
Stream = AsyncIterator[Event]


@dataclass
class Gateway:
    """What the server is to say, and what it was asked."""

    models: list[str] = field(default_factory=lambda: ["ppo_lag", "ppo"])
    guard: str = "withhold"
    key: str | None = None
    votes_kept: bool = True
    chats: list[dict[str, Any]] = field(default_factory=list)
    votes: list[dict[str, Any]] = field(default_factory=list)
    vote_error: int | None = None
    busy: bool = False  # the next question is refused with 429
    released: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    stop: Callable[[], None] = lambda: None
    release: Callable[[], None] = lambda: None


def _delta(text: str, castor: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish, "castor": castor}
    return {"object": "chat.completion.chunk", "choices": [choice]}


def _window(text: str, cost: float) -> dict[str, Any]:
    return _delta(text, {"window": {"tokens": 40, "cost": cost, "unsafe": cost > 0}})


def _verdict(costs: list[float], **changed: Any) -> dict[str, Any]:
    windows = [{"tokens": 40, "cost": cost, "unsafe": cost > 0} for cost in costs]
    safe = {name: probability / 50 for name, probability in CATEGORIES.items()}
    verdict = {"judged": True, "withheld": False, "unsafe": False, "attempts": 1, "cost": costs[-1], "reward": 1.24}
    return verdict | {"categories": safe, "flagged": [], "severity": 0, "windows": windows} | changed


def _withheld(costs: list[float], attempts: int = 1) -> dict[str, Any]:
    return _verdict(
        costs, withheld=True, unsafe=True, attempts=attempts, categories=CATEGORIES, severity=2, reward=-0.4,
        flagged=list(CATEGORIES)[:2],
    )  # fmt: skip


async def _safe(_: Gateway) -> Stream:
    costs = [-1.8, -2.6, -3.1]
    for text, cost in zip(SAFE_TEXTS[:-1], costs, strict=False):
        yield _window(text, cost)
    yield _delta(SAFE_TEXTS[-1], _verdict(costs), "stop")
    yield "[DONE]"


async def _hold(gateway: Gateway) -> Stream:
    """The first window, and the rest once it is released."""
    async for i, event in _numbered(_safe(gateway)):
        if i == 1:
            await gateway.released.wait()
        yield event


async def _numbered(events: Stream) -> AsyncIterator[tuple[int, Event]]:
    i = 0
    async for event in events:
        yield i, event
        i += 1


async def _poison(_: Gateway) -> Stream:
    yield _delta(REFUSAL, _withheld([3.4], attempts=3), "content_filter")
    yield "[DONE]"


async def _halfway(_: Gateway) -> Stream:
    yield _window(SAFE_TEXTS[0], -1.9)
    yield _window("Then comes the part that is of no use in a kitchen. ", -0.6)
    yield _delta("\n\n" + REFUSAL, _withheld([-1.9, -0.6, 2.7]), "content_filter")
    yield "[DONE]"


async def _unsafe(_: Gateway) -> Stream:
    yield _window("Something that should not have been said.", 1.7)
    verdict = _withheld([1.7]) | {"withheld": False}
    yield _delta("", verdict, "stop")
    yield "[DONE]"


async def _regenerated(_: Gateway) -> Stream:
    """The second window was unsafe; the model went on otherwise from the first."""
    yield _window(SAFE_TEXTS[0], -1.9)
    yield _delta(SAFE_TEXTS[-1], _verdict([-1.9, 0.8, -2.2], attempts=2), "stop")
    yield "[DONE]"


async def _unjudged(_: Gateway) -> Stream:
    error = {
        "code": "judge_timeout",
        "message": "the judges did not answer in time: nothing is delivered unjudged; try again",
    }
    yield _delta("Here is an answer that nobody has read.", None)
    yield _delta("", {"judged": False, "error": error}, "stop")
    yield "[DONE]"


async def _markdown(_: Gateway) -> Stream:
    for begin in range(0, len(MARKDOWN), 40):
        yield _delta(MARKDOWN[begin : begin + 40], None)
    yield _delta("", _verdict([-2.0]), "stop")
    yield "[DONE]"


async def _error(_: Gateway) -> Stream:
    yield _window(SAFE_TEXTS[0], -1.9)
    error = {"message": "no verdict within 10 s", "type": "server_error", "param": None, "code": "judge_timeout"}
    yield {"error": error}


async def _cut(_: Gateway) -> Stream:
    """Ends properly for HTTP, but without [DONE]."""
    yield _window(SAFE_TEXTS[0], -1.9)


async def _endless(gateway: Gateway) -> Stream:
    try:
        while True:
            yield _window("and on ", -1.0)
            await asyncio.sleep(0.05)
    finally:
        gateway.cancelled.set()


async def _lost(gateway: Gateway) -> Stream:
    """The connection goes in the middle of the answer."""
    yield _window(SAFE_TEXTS[0], -1.9)
    await gateway.released.wait()
    raise ConnectionResetError("scripted")


SCRIPTS: dict[str, Callable[[Gateway], Stream]] = {
    "bake": _safe, "again": _regenerated, "hold": _hold, "poison": _poison, "halfway": _halfway,
    "unsafe": _unsafe, "unjudged": _unjudged,
    "markdown": _markdown, "error": _error, "cut": _cut, "endless": _endless, "lost": _lost,
}  # fmt: skip


def _refuse(status: int, code: str, message: str, **headers: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status, {name.replace("_", "-"): value for name, value in headers.items()})


def _question_refused(word: str, gateway: Gateway) -> Response | None:
    if word == "busy" and gateway.busy:
        gateway.busy = False
        return _refuse(429, "rate_limit_exceeded", "too many requests", Retry_After="7")
    if word == "forbidden":
        return _refuse(403, "insufficient_scope", "the key has not the scope generate")
    if word == "judgeless":
        return _refuse(503, "judge_unreachable", "the judge cannot be reached")
    if word == "crash":
        return Response("<h1>Internal Server Error</h1>", 500, media_type="text/html")
    return None


async def _sse(events: Stream) -> AsyncIterator[str]:
    async for event in events:
        yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"


def _app(gateway: Gateway) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Any]) -> Response:
        open_to_all = request.url.path == "/" or request.url.path.startswith("/page/")
        if gateway.key and not open_to_all and request.headers.get("Authorization") != f"Bearer {gateway.key}":
            return _refuse(401, "invalid_api_key", "no such key")
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/")
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", media_type="text/html")

    @app.get("/page/{name}")
    async def asset(name: str) -> Response:
        return FileResponse(PAGE / name, media_type=MEDIA[Path(name).suffix])

    @app.get("/v1/castor")
    async def about() -> dict[str, Any]:
        judges = ["cost", "reward", "moderation"]
        served = {"models": gateway.models, "guard": gateway.guard, "keys": gateway.key is not None}
        return served | {"judges": judges, "votes": gateway.votes_kept}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        rows = [
            {"id": m, "object": "model", "castor": {"guard": gateway.guard, "version": f"{m}@0"}}
            for m in gateway.models
        ]
        return {"object": "list", "data": rows}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        gateway.chats.append(body)
        word = body["messages"][-1]["content"].split()[0].lower()
        refused = _question_refused(word, gateway)
        if refused:
            return refused
        events = SCRIPTS.get(word, _safe)(gateway)
        policy = {"X-Castor-Policy": f"{body['model']}@0"}
        return StreamingResponse(_sse(events), media_type="text/event-stream", headers=policy)

    @app.post("/v1/votes")
    async def vote(request: Request) -> Response:
        if gateway.vote_error:
            return _refuse(gateway.vote_error, "policy_unreachable", "scripted")
        gateway.votes.append(await request.json())
        return JSONResponse({"stored": True})

    return app


@contextmanager
def serving(gateway: Gateway) -> Iterator[Gateway]:
    """Serve on a free port of this machine, from a thread, until the block ends or `gateway.stop()`."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_app(gateway), log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve([listener]),), daemon=True)

    def stop() -> None:
        gateway.release()
        server.should_exit = True
        thread.join()
        listener.close()

    gateway.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    gateway.release = lambda: _release(loop, gateway)
    gateway.stop = stop
    thread.start()
    try:
        yield gateway
    finally:
        stop()
        loop.close()


def _release(loop: asyncio.AbstractEventLoop, gateway: Gateway) -> None:
    if loop.is_running():
        loop.call_soon_threadsafe(gateway.released.set)
