"""Asking a policy: whole answers, streams of text, or whatever its app says as it stands."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from serve.asgi import Head
from serve.gateway.bodies import CHAT, Route, encoded
from serve.gateway.calls import ReplicaFailed, ReplicaGone, calling
from serve.gateway.failures import BadRequest, PolicyFailed, PolicyUnreachable
from serve.parts import Inbox, Opening

# on every event, as a stream that is broken off has no last one
USAGE = {"include_usage": True, "continuous_usage_stats": True}


@dataclass(frozen=True)
class Delta:
    """A piece of an answer."""

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None


@dataclass
class Usage:
    """Tokens of a request."""

    prompt: int = 0
    completion: int = 0

    def wire(self) -> dict[str, int]:
        """OpenAI's."""
        total = self.prompt + self.completion
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion, "total_tokens": total}


class Sampling:
    """A policy's deployment, as one request sees it. `version` is known once the policy has begun to answer."""

    def __init__(self, handle: DeploymentHandle, inbox: Inbox, name: str) -> None:
        self.handle, self.inbox, self.name = handle, inbox, name
        self.version = name
        self.usage = Usage()

    async def whole(self, route: Route, body: dict[str, Any]) -> Delta:
        """One answer. Raises BadRequest for what vLLM's app refuses, and PolicyUnreachable, PolicyFailed."""
        head, parts = await self.raw(route, encoded(body))
        values = _json(parts)
        self._require_success(head, values)
        try:
            (choice,) = values["choices"]
            text = choice["message"]["content"] if route == CHAT else choice["text"]
            tokens = int(values["usage"]["completion_tokens"])
            self._count(Usage(*_tokens(values["usage"])))
            return Delta(text or "", tokens, choice["finish_reason"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._no_answer() from None

    async def deltas(self, route: Route, body: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        """One answer as it is made; the last piece has a finish reason. Raises as `whole`."""
        body = body | {"stream": True, "stream_options": USAGE, "return_token_ids": True}
        rest, finished = b"", False
        parts = self.raw_stream(route, encoded(body))
        head = await anext(parts)
        assert isinstance(head, Head)
        if head.status != 200:
            self._require_success(head, _json(b"".join([part async for part in parts if isinstance(part, bytes)])))
        usage = Usage()
        try:
            async for part in parts:
                assert isinstance(part, bytes)
                *events, rest = (rest + part).split(b"\n\n")
                for event in events:
                    delta = self._delta(route, event, usage)
                    if delta is not None:
                        finished = finished or delta.finish_reason is not None
                        yield delta
        finally:
            await parts.aclose()
            self._count(usage)
        if not finished:
            raise self._no_answer()

    async def raw(self, path: str, body: bytes) -> tuple[Head, bytes]:
        """What vLLM's app answers. Raises PolicyUnreachable."""
        with self._asking():
            response: Any = self.handle.answer.remote(path, body)
            try:
                head, self.version, content = await response
            except BaseException:
                response.cancel()  # the client is gone, or the time is up: sample no more for it
                raise
            return head, content

    async def raw_stream(self, path: str, body: bytes) -> AsyncGenerator[Head | bytes, None]:
        """What vLLM's app streams. Raises PolicyUnreachable."""
        with self._asking(), self.inbox.expecting() as answer:
            response: Any = self.handle.stream.remote(path, body, answer.address)
            answer.of(response)
            try:
                async with aclosing(answer.parts()) as parts:
                    opening = Opening.from_bytes(await anext(parts))
                    self.version = opening.version
                    yield opening.head
                    async for part in parts:
                        yield part
            finally:
                response.cancel()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Failures of a replica and its engine, in one sentence."""
        try:
            with calling():
                yield
        except ReplicaFailed as error:
            raise PolicyFailed(f"the policy {self.name} failed: {error}; try again") from error
        except ReplicaGone as error:
            raise PolicyUnreachable(
                f"the policy {self.name} cannot be reached, or died meanwhile; try again"
            ) from error

    def _delta(self, route: Route, event: bytes, usage: Usage) -> Delta | None:
        line = event.strip()
        if not line.startswith(b"data:"):
            return None
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return None
        values = _json(data)
        if not isinstance(values, dict) or "error" in values:
            raise self._no_answer()
        if values.get("usage"):
            usage.prompt, usage.completion = _tokens(values["usage"])
        if not values.get("choices"):
            return None
        try:
            (choice,) = values["choices"]
            text = choice["delta"].get("content") if route == CHAT else choice["text"]
            return Delta(text or "", len(choice.get("token_ids") or ()), choice.get("finish_reason"))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._no_answer() from None

    def _count(self, usage: Usage) -> None:
        """All that was sampled counts, whether or not it was delivered; the prompt counts once."""
        self.usage.prompt = self.usage.prompt or usage.prompt
        self.usage.completion += usage.completion

    def _require_success(self, head: Head, values: Any) -> None:
        """Hand on what vLLM refuses as the client's fault; anything else is the policy's."""
        if head.status == 200:
            return
        error = values.get("error") if isinstance(values, dict) else None
        if 400 <= head.status < 500 and isinstance(error, dict):
            raise BadRequest(str(error.get("message")), param=error.get("param"))
        raise PolicyUnreachable(f"the policy {self.name} cannot answer at the moment; try again")

    def _no_answer(self) -> PolicyFailed:
        return PolicyFailed(f"the policy {self.name} broke its answer off; try again")


def _tokens(usage: dict[str, Any]) -> tuple[int, int]:
    return int(usage["prompt_tokens"]), int(usage["completion_tokens"])


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
