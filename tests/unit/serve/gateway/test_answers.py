"""Answers in OpenAI's shape."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.answers import DONE, Shape, event, on_one_line
from serve.gateway.bodies import CHAT, COMPLETIONS, Route, read
from serve.gateway.guard import Piece
from serve.gateway.sampling import Usage

VERSION = "lag@2"
CASTOR = {"judged": True, "withheld": False}


def shape(route: Route) -> Shape:
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}], "prompt": "q"}
    del question["prompt" if route == CHAT else "messages"]
    return Shape(read(route, {"model": "lag", **question}, "withhold", 10, 1))


def value_of(event: bytes | None) -> dict[str, Any]:
    assert event is not None
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    return json.loads(event.removeprefix(b"data: "))


@pytest.mark.parametrize(
    ("route", "whole", "chunk", "prefix"),
    [
        (CHAT, "chat.completion", "chat.completion.chunk", "chatcmpl-"),
        (COMPLETIONS, "text_completion", "text_completion", "cmpl-"),
    ],
)
def test_frames(route: Route, whole: str, chunk: str, prefix: str) -> None:
    made = shape(route)
    answer = made.whole([Piece("a", "stop", CASTOR), Piece("b", "length")], Usage(3, 4), VERSION)
    events = [value_of(made.chunk(0, Piece("a"), VERSION)), value_of(made.usage(Usage(3, 4), VERSION))]
    for each, kind in ((answer, whole), (events[0], chunk), (events[1], chunk)):
        assert (each["object"], each["model"], each["id"]) == (kind, "lag", made.id)
        assert each["id"].startswith(prefix)
        assert each["castor"] == {"guard": "withhold", "policy": VERSION}
    assert answer["usage"] == events[1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert events[1]["choices"] == []
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    assert answer["choices"][0]["castor"] == CASTOR
    assert "castor" not in answer["choices"][1]
    assert shape(route).id != made.id


def test_where_the_text_is() -> None:
    chat, text = shape(CHAT), shape(COMPLETIONS)
    piece = Piece("größe\n\n", None, {"window": {}})
    (choice,) = chat.whole([piece], Usage(), VERSION)["choices"]
    assert choice["message"] == {"role": "assistant", "content": piece.text}
    (choice,) = text.whole([piece], Usage(), VERSION)["choices"]
    assert choice["text"] == piece.text
    (choice,) = value_of(chat.chunk(1, piece, VERSION))["choices"]
    assert choice == {
        "index": 1, "delta": {"content": piece.text}, "logprobs": None, "finish_reason": None, "castor": {"window": {}},
    }  # fmt: skip
    (choice,) = value_of(text.chunk(1, piece, VERSION))["choices"]
    assert (choice["text"], choice["index"]) == (piece.text, 1)
    (choice,) = value_of(chat.chunk(0, Piece("", "stop"), VERSION))["choices"]
    assert (choice["delta"], choice["finish_reason"]) == ({}, "stop")


def test_how_a_stream_begins_and_ends() -> None:
    (choice,) = value_of(shape(CHAT).opening(2, VERSION))["choices"]
    assert choice == {"index": 2, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    assert shape(COMPLETIONS).opening(0, VERSION) is None
    assert DONE == b"data: [DONE]\n\n"


BREAKS = "".join(map(chr, [0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029]))  # to str.splitlines


@given(st.text(st.one_of(st.sampled_from(BREAKS), st.characters(exclude_categories=["Cs"]))))
def test_a_client_that_reads_lines_gets_one_for_each_event(text: str) -> None:
    raw = b"data: " + json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n\n"  # as vLLM's app sends it
    answer = httpx.Response(200, content=event({"text": text}) + on_one_line(raw))
    lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert [json.loads(line) for line in lines] == [{"text": text}, {"text": text}]
