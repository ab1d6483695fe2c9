"""Clients that note everything that reached them, and when an answer broke off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from castor.data.rows.schemas import Exchange
from tests.integration.serve.conftest import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Received:
    """What a client got of one answer: pieces of text in their order."""

    prompt: str
    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    castor: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def withheld(self) -> bool:
        return self.finish_reason == "content_filter"

    @property
    def prefixes(self) -> list[Exchange]:
        """All that a client had before it at some moment, as the judges read it. A refusal is no text of the policy."""
        pieces = self.pieces[:-1] if self.withheld else self.pieces
        seen = ["".join(pieces[: end + 1]).strip() for end in range(len(pieces))]
        return [Exchange(self.prompt, text) for text in seen if text]


@dataclass
class Outcome:
    """Of one request. `error` is the code of an error of the server's, or the name of a lost connection's exception."""

    status: int | None
    answers: list[Received]
    error: str | None = None
    version: str | None = None
    unread: str = ""  # what is no JSON


def ask(server: Server, prompt: str, *, route: str = CHAT, stream: bool = False, n: int = 1, **more: Any) -> Outcome:
    """One request, whatever becomes of it."""
    question = {"prompt": prompt} if route == COMPLETIONS else {"messages": [{"role": "user", "content": prompt}]}
    body = {"model": "ppo_lag", "max_tokens": 24, "stream": stream, "n": n, **question, **more}
    outcome = Outcome(None, [Received(prompt) for _ in range(n)])
    try:
        with httpx.stream("POST", server.url + route, json=body, headers=server.headers, timeout=90) as answer:
            outcome.status, outcome.version = answer.status_code, answer.headers.get("x-castor-policy")
            if stream and answer.status_code == 200:
                _read_stream(answer, outcome)
            else:
                _read_whole(json.loads(answer.read()), outcome)
    except (httpx.HTTPError, ValueError) as error:
        outcome.error, outcome.unread = type(error).__name__, getattr(error, "doc", "")
    return outcome


def ask_all(
    server: Server, prompts: Sequence[str], seeds: Sequence[int] | None = None, at_a_time: int = 8, **how: Any
) -> list[Outcome]:
    """Many requests side by side."""
    with ThreadPoolExecutor(at_a_time) as pool:
        jobs = [
            pool.submit(ask, server, prompt, seed=seed, **how)
            for prompt, seed in zip(prompts, seeds or range(len(prompts)), strict=True)
        ]
        return [job.result() for job in jobs]


def _read_whole(body: dict[str, Any], outcome: Outcome) -> None:
    if "error" in body:
        outcome.error = body["error"]["code"]
        return
    for choice in body["choices"]:
        received = outcome.answers[choice["index"]]
        received.pieces.append(choice["message"]["content"] if "message" in choice else choice["text"])
        received.finish_reason, received.castor = choice["finish_reason"], choice.get("castor", {})


def _read_stream(answer: httpx.Response, outcome: Outcome) -> None:
    done = False
    for line in answer.iter_lines():
        if line == "data: [DONE]":
            done = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                outcome.error = event["error"]["code"]
                continue
            for choice in event["choices"]:
                received = outcome.answers[choice["index"]]
                text = choice["delta"].get("content") if "delta" in choice else choice["text"]
                if text:
                    received.pieces.append(text)
                if choice["finish_reason"]:
                    received.finish_reason, received.castor = choice["finish_reason"], choice.get("castor", {})
    if not done and outcome.error is None:
        outcome.error = "broken off"
