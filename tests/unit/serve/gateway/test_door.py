"""What a request has to be like before it is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request
from pydantic import BaseModel

from castor.config.gateway import Gateway
from serve.gateway.door import ANYBODY, Caller, Door
from serve.gateway.failures import BadRequest, NotJSON, Strange, TooLarge
from serve.gateway.metrics import Metrics
from serve.gateway.scope import Scope

HERE = {"host": "127.0.0.1:8000", "content-type": "application/json"}


class Named(BaseModel):
    """A body."""

    name: str


def door(**options: Any) -> Door:
    """Without keys."""
    return Door(Gateway(**options), None, Metrics())


def request(headers: dict[str, str], *chunks: bytes) -> Request:
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    waiting.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return waiting.pop(0)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}, receive)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "localhost", "[::1]:8000", "[::1]"])
@pytest.mark.parametrize("origin", [None, "http://{host}"])
def test_without_keys_this_machine_may_ask(host: str, origin: str | None) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin.format(host=host)})
    assert asyncio.run(door().caller(request(headers), Scope.GENERATE)).id == ANYBODY


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "rebound.example"},
        {"host": "rebound.example:8000", "origin": "http://rebound.example:8000"},
        {"host": "127.0.0.1:8000", "origin": "https://elsewhere.example"},
        {"host": "127.0.0.1:8000", "origin": "null"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:3000"},
        {"host": "127.0.0.1.elsewhere.example:8000"},
    ],
)
def test_pages_of_other_sites_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(Strange) as refused:
        asyncio.run(door().caller(request(headers), Scope.VOTE))
    assert refused.value.status == 403


def test_a_body_is_read_in_pieces_and_no_further_than_allowed() -> None:
    found = asyncio.run(door().body(request(HERE, b'{"name": ', b'"a"}'), Named))
    assert found == Named(name="a")
    long = request(HERE, *[b" " * 1024] * 3)
    with pytest.raises(TooLarge):
        asyncio.run(door(limits={"body_kib": 2}).json(long))
    told = request(HERE | {"content-length": "4096"}, b"{}")
    with pytest.raises(TooLarge):
        asyncio.run(door(limits={"body_kib": 2}).json(told))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json-seq"])
def test_what_a_foreign_page_can_send_is_no_json(kind: str) -> None:
    with pytest.raises(NotJSON):
        asyncio.run(door().json(request(HERE | {"content-type": kind}, b'{"name": "a"}')))


@pytest.mark.parametrize("body", [b"", b"{", b'{"name": 1}', b"[]", b'{"name": "\\ud800"}', b'{"name": NaN}'])
def test_other_bodies_are_bad_requests(body: bytes) -> None:
    with pytest.raises(BadRequest):
        asyncio.run(door().body(request(HERE, body), Named))


def test_replicas_share_places_and_rates() -> None:
    found = door(max_running=10, max_waiting=7)
    found.share(3)
    assert found.limits.replicas == 3

    async def most() -> tuple[int, int, int]:
        taken = [asyncio.create_task(hold(found)) for _ in range(12)]
        await asyncio.sleep(0)
        counts = found.admission.running, found.admission.waiting("interactive"), sum(task.done() for task in taken)
        for task in taken:
            task.cancel()
        await asyncio.gather(*taken, return_exceptions=True)
        return counts

    assert asyncio.run(most()) == (3, 2, 7)
    assert "castor_running 0.0" in found.metrics.page().decode()


async def hold(found: Door) -> None:
    async with found.place(Caller(ANYBODY, None), "interactive"):
        await asyncio.Event().wait()
