"""Reading what vLLM's app says: text, tokens and end, however the bytes are cut; anything else is an error."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.asgi import Head
from serve.gateway.bodies import CHAT, COMPLETIONS, Route
from serve.gateway.failures import BadRequest, PolicyFailed, PolicyUnreachable
from serve.gateway.sampling import Delta, Sampling, Usage
from serve.parts import Inbox


class Wire(Sampling):
    """A policy of which the bytes are known that it sends."""

    def __init__(self, *parts: bytes, status: int = 200) -> None:
        super().__init__(None, Inbox(), "lag")  # type: ignore[arg-type]
        self.parts, self.status, self.closed = parts, status, False
        self.body: dict[str, Any] = {}

    async def raw(self, path: str, body: bytes) -> tuple[Head, bytes]:
        self.body = json.loads(body)
        return Head(self.status, "application/json"), b"".join(self.parts)

    async def raw_stream(self, path: str, body: bytes) -> AsyncGenerator[Head | bytes, None]:
        self.body = json.loads(body)
        try:
            yield Head(self.status, "text/event-stream")
            for part in self.parts:
                yield part
        finally:
            self.closed = True


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk(route: Route, text: str | None, tokens: int, reason: str | None, completion: int) -> bytes:
    content = {"delta": {"content": text}} if route == CHAT else {"text": text}
    usage = {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": 7 + completion}
    choice = {"index": 0, **content, "finish_reason": reason, "token_ids": list(range(tokens)) or None}
    return event({"choices": [choice], "usage": usage})


async def deltas_of(wire: Wire, route: Route, most: int | None = None) -> list[Delta]:
    found: list[Delta] = []
    async with aclosing(wire.deltas(route, {"model": "lag"})) as deltas:
        async for delta in deltas:
            found.append(delta)
            if len(found) == most:
                break
    return found


DELTAS = st.lists(st.tuples(st.text(max_size=5), st.integers(0, 3)), min_size=1, max_size=6)


@given(DELTAS, st.sampled_from([CHAT, COMPLETIONS]), st.lists(st.integers(0, 2000), max_size=8))
def test_a_stream_is_read_however_it_is_cut(said: list[tuple[str, int]], route: Route, cuts: list[int]) -> None:
    content, total = b"", 0
    for number, (text, tokens) in enumerate(said):
        total += tokens
        content += chunk(route, text, tokens, "stop" if number == len(said) - 1 else None, total)
    usage = {"prompt_tokens": 7, "completion_tokens": total}
    content += event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"
    places = sorted({min(cut, len(content)) for cut in cuts} | {0, len(content)})
    wire = Wire(*(content[start:end] for start, end in pairwise(places)))
    found = asyncio.run(deltas_of(wire, route))
    ends: list[str | None] = [*[None] * (len(said) - 1), "stop"]
    assert found == [Delta(text, tokens, end) for (text, tokens), end in zip(said, ends, strict=True)]
    assert wire.usage == Usage(7, total)
    assert wire.body == {
        "model": "lag", "stream": True, "return_token_ids": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip


def test_what_was_sampled_counts_though_it_was_broken_off() -> None:
    wire = Wire(chunk(CHAT, "a", 2, None, 2), chunk(CHAT, "b", 3, None, 5), chunk(CHAT, "c", 1, "stop", 6))
    assert len(asyncio.run(deltas_of(wire, CHAT, most=2))) == 2
    assert (wire.usage.wire(), wire.closed) == (
        {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
        True,
    )
    asyncio.run(deltas_of(wire, CHAT))
    assert wire.usage == Usage(7, 11)  # the prompt is the client's once, however often it was sent


@pytest.mark.parametrize(
    "parts",
    [
        [], [b"data: [DONE]\n\n"], [chunk(CHAT, "a", 1, None, 1)], [chunk(CHAT, "a", 1, "stop", 1)[:-2]],
        [event({"error": {"message": "m"}})], [chunk(CHAT, "a", 1, None, 1), event({"error": "e"})],
        [b"data: {\n\n"], [b"data: 3\n\n"], [event({"choices": [1]})], [event({"choices": [{}, {}]})],
        [event({"choices": [{"index": 0}]})], [event({"choices": [{"delta": {}, "token_ids": 3}]})],
    ],
    ids=str,
)  # fmt: skip
def test_a_stream_that_is_broken_off_is_no_answer(parts: list[bytes]) -> None:
    wire = Wire(*parts)
    with pytest.raises(PolicyFailed, match="the policy lag broke its answer off"):
        asyncio.run(deltas_of(wire, CHAT))
    assert wire.closed


ERROR = json.dumps({"error": {"message": "too long", "param": "messages", "code": 400}}).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (400, ERROR, BadRequest), (404, ERROR, BadRequest), (500, ERROR, PolicyUnreachable),
        (400, b"<html>", PolicyUnreachable), (400, b'{"error": "e"}', PolicyUnreachable), (503, b"", PolicyUnreachable),
        (307, b"", PolicyUnreachable), (201, ERROR, PolicyUnreachable),
    ],
)  # fmt: skip
def test_whose_fault_an_error_is(stream: bool, status: int, content: bytes, error: type[Exception]) -> None:
    wire = Wire(content, status=status)
    with pytest.raises(error) as raised:
        asyncio.run(deltas_of(wire, CHAT) if stream else wire.whole(CHAT, {}))
    if isinstance(raised.value, BadRequest):
        assert (raised.value.message, raised.value.param) == ("too long", "messages")


def answer(**choice: Any) -> bytes:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    return json.dumps({"choices": [{"finish_reason": "length"} | choice], "usage": usage}).encode()


def test_whole_answers() -> None:
    wire = Wire(answer(message={"content": "so"}))
    assert asyncio.run(wire.whole(CHAT, {"model": "lag"})) == Delta("so", 3, "length")
    assert (wire.body, wire.usage) == ({"model": "lag"}, Usage(7, 3))
    assert asyncio.run(Wire(answer(message={"content": None})).whole(CHAT, {})) == Delta("", 3, "length")
    assert asyncio.run(Wire(answer(text="so")).whole(COMPLETIONS, {})) == Delta("so", 3, "length")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}', answer(), answer(message=None)],
    ids=str,
)
def test_whole_answers_that_are_none(content: bytes) -> None:
    with pytest.raises(PolicyFailed):
        asyncio.run(Wire(content).whole(CHAT, {}))
