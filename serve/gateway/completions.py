"""`/v1/chat/completions` and `/v1/completions`: from a request through policy and guard to its answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse, Response, StreamingResponse

from castor.config.guard import Guard, GuardMode
from serve.asgi import Head
from serve.gateway.answers import DONE, Shape, event, on_one_line
from serve.gateway.audit import AuditError, AuditLog, Entry, Event
from serve.gateway.bodies import Ask, Route, chosen_mode, encoded, head_of, read
from serve.gateway.door import POLICY_HEADER, Caller, Door
from serve.gateway.errors import RequestError
from serve.gateway.failures import BadRequest, JudgeError, PolicyFailed, RequestTimeout, UnknownModel
from serve.gateway.guard import Answer, Piece, all_of
from serve.gateway.judging import Judging
from serve.gateway.metrics import Metrics
from serve.gateway.sampling import Sampling
from serve.gateway.verdict import Rule, Verdict
from serve.parts import Inbox

log = logging.getLogger("ray.serve")
SSE = "text/event-stream"
NO_BUFFERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # on the way of a stream


class Model:
    """A policy as clients see it."""

    def __init__(self, name: str, handle: Any, inbox: Inbox, guard: Guard, mode: GuardMode, context: int) -> None:
        self.name, self.handle, self.inbox = name, handle, inbox
        self.guard, self.mode, self.context = guard, mode, context
        self.created = int(time.time())

    def sampling(self) -> Sampling:
        """For one request."""
        return Sampling(self.handle, self.inbox, self.name)


class Completions:
    """Answers of all policies."""

    def __init__(
        self, door: Door, models: dict[str, Model], judging: Judging | None, audit: AuditLog | None, metrics: Metrics
    ) -> None:
        self.door, self.models, self.judging, self.audit, self.metrics = door, models, judging, audit, metrics

    async def respond(self, route: Route, caller: Caller, values: Any) -> Response:
        """Answer a body. Raises a RequestError, as long as nothing of an answer has left."""
        begun = time.monotonic()
        name, wanted = head_of(values)
        model = self.models.get(name)
        if model is None or not caller.may_use(name):
            offered = ", ".join(each for each in self.models if caller.may_use(each))
            raise UnknownModel(f"there is no model {name[:100]!r} for you: there is {offered}", param="model")
        limits = self.door.config.limits
        mode = chosen_mode(model.mode, wanted)
        judges = () if self.judging is None else self.judging.present
        if mode != "off" and "cost" not in judges and "moderation" not in judges:
            raise BadRequest(
                f"no cost and no moderation model is served here, so {name} has no guard but off", param="castor.guard"
            )
        ask = read(route, values, mode, _bound(limits.max_tokens, model.context), limits.n)
        stack = AsyncExitStack()
        try:
            await stack.enter_async_context(self.door.place(caller, ask.priority))
            deadline = asyncio.get_running_loop().time() + limits.seconds
            if mode == "off":
                return await self._unguarded(model, ask, stack, begun, deadline)
            return await self._guarded(model, ask, caller, stack, begun, deadline)
        except BaseException:
            await stack.aclose()
            raise

    async def _unguarded(
        self, model: Model, ask: Ask, stack: AsyncExitStack, begun: float, deadline: float
    ) -> Response:
        """What vLLM's app says, as it stands but for an escape or two (see `on_one_line`)."""
        sampling, body = model.sampling(), encoded(ask.body)
        if not ask.stream:
            async with stack:
                head, content = await sampling.raw(ask.route, body)
                self._delivered(model, ask.mode, begun)
                return Response(content, head.status, {POLICY_HEADER: sampling.version}, head.media_type)
        parts = sampling.raw_stream(ask.route, body)
        stack.push_async_callback(parts.aclose)
        opening: Head | bytes = await anext(parts)
        if not isinstance(opening, Head):
            raise PolicyFailed(f"the policy {model.name} gave no answer; try again")

        async def content_of() -> AsyncIterator[bytes]:
            delivered = False
            async for part in parts:
                assert isinstance(part, bytes)
                if not delivered:
                    delivered = True
                    self._delivered(model, ask.mode, begun)
                yield on_one_line(part)

        headers = {POLICY_HEADER: sampling.version}
        return _Stream(content_of(), stack, deadline, headers, opening.media_type, opening.status)

    async def _guarded(
        self, model: Model, ask: Ask, caller: Caller, stack: AsyncExitStack, begun: float, deadline: float
    ) -> Response:
        assert self.judging is not None
        shape, rule = Shape(ask), Rule(model.guard, self.judging.present)
        sampling = model.sampling()
        told = self._teller(shape.id, caller, sampling, ask)
        answers = [Answer(ask, number, rule, self.judging, sampling, told) for number in range(ask.n)]
        if not ask.stream:
            async with stack:
                try:
                    pieces = await all_of(_last(answer) for answer in answers)
                except JudgeError as error:
                    await told("judge_failed", "", error)
                    raise
                self._ended(model, ask.mode, pieces)
                self._delivered(model, ask.mode, begun)
                content = shape.whole(pieces, sampling.usage, sampling.version)
                return JSONResponse(content, headers={POLICY_HEADER: sampling.version})
        numbered = _merged(answers) if ask.n > 1 else _numbered(answers[0])
        stack.push_async_callback(numbered.aclose)
        try:
            first = await anext(numbered)  # so that an error before any text still has its own HTTP status
        except JudgeError as error:
            await told("judge_failed", "", error)
            raise

        async def events() -> AsyncIterator[bytes]:
            opened: set[int] = set()
            version = sampling.version
            try:
                self._delivered(model, ask.mode, begun)
                async for number, piece in _with_first(first, numbered):
                    if number not in opened:
                        opened.add(number)
                        opening = shape.opening(number, version)
                        if opening is not None:
                            yield opening
                    if piece.finish_reason is not None:
                        self._ended(model, ask.mode, [piece])
                    yield shape.chunk(number, piece, version)
                if ask.include_usage:
                    yield shape.usage(sampling.usage, version)
                yield DONE
            except RequestError as error:
                if isinstance(error, JudgeError):
                    await told("judge_failed", "", error)
                yield event(error.body())  # and no [DONE]: what was sent is not the whole answer

        return _Stream(events(), stack, deadline, {POLICY_HEADER: sampling.version})

    def _teller(
        self, id: str, caller: Caller, sampling: Sampling, ask: Ask
    ) -> Callable[[Event, str, Verdict | JudgeError], Awaitable[None]]:
        async def told(happened: Event, answer: str, what: Verdict | JudgeError) -> None:
            """Write to the audit log. An answer is withheld whether or not the log has room."""
            if self.audit is None:
                return
            key = None if caller.key is None else caller.id
            entry = Entry(happened, id, key, sampling.version, ask.mode, ask.exchange.prompt, answer)
            if isinstance(what, JudgeError):
                entry = replace(entry, error=what.code)
            else:
                wire = what.wire
                flagged, severity = tuple(wire["flagged"]), wire["severity"]
                entry = replace(entry, cost=wire["cost"], flagged=flagged, severity=severity)
            try:
                await asyncio.to_thread(self.audit.write, entry)
            except AuditError as error:
                self.metrics.audit_failures.inc()
                log.error("%s", error)

        return told

    def _ended(self, model: Model, mode: GuardMode, pieces: list[Piece]) -> None:
        for piece in pieces:
            castor = piece.castor or {}
            end = "unjudged" if not castor.get("judged") else "withheld" if castor["withheld"] else "delivered"
            self.metrics.verdicts.labels(model.name, mode, end).inc()

    def _delivered(self, model: Model, mode: GuardMode, begun: float) -> None:
        self.metrics.first_text.labels(model.name, mode).observe(time.monotonic() - begun)


def _bound(longest: int | None, context: int) -> int | None:
    """Tokens of the longest answer, where that is less than the model itself allows."""
    return longest if longest is not None and longest < context else None


async def _last(answer: Answer) -> Piece:
    """The one piece of an answer that is not streamed."""
    async with aclosing(answer.pieces()) as pieces:
        return [piece async for piece in pieces][-1]


async def _numbered(answer: Answer) -> AsyncGenerator[tuple[int, Piece], None]:
    async with aclosing(answer.pieces()) as pieces:
        async for piece in pieces:
            yield answer.number, piece


async def _merged(answers: list[Answer]) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of several answers, in the order in which they come. The first failure ends all of them."""
    waiting: asyncio.Queue[tuple[int, Piece] | BaseException | None] = asyncio.Queue()

    async def feed(answer: Answer) -> None:
        try:
            async with aclosing(answer.pieces()) as pieces:
                async for piece in pieces:
                    waiting.put_nowait((answer.number, piece))
            waiting.put_nowait(None)
        except BaseException as error:  # raised by whoever reads the queue
            waiting.put_nowait(error)

    tasks = [asyncio.create_task(feed(answer)) for answer in answers]
    left = len(tasks)
    try:
        while left:
            item = await waiting.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def _with_first(
    first: tuple[int, Piece], rest: AsyncIterator[tuple[int, Piece]]
) -> AsyncIterator[tuple[int, Piece]]:
    yield first
    async for item in rest:
        yield item


async def _bounded(parts: AsyncIterator[bytes], deadline: float) -> AsyncIterator[bytes]:
    """A stream that ends in time, and whose errors are its last event."""
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            yield event(RequestTimeout("the answer took longer than one may").body())
            return
        except RequestError as error:
            yield event(error.body())
            return
        yield part


class _Stream(StreamingResponse):
    """A stream that keeps its place, and its policy at work, until it has ended, or its client is gone."""

    def __init__(
        self, parts: AsyncIterator[bytes], stack: AsyncExitStack, deadline: float, headers: dict[str, str],
        media_type: str = SSE, status: int = 200,
    ) -> None:  # fmt: skip
        super().__init__(_bounded(parts, deadline), status, headers | NO_BUFFERS, media_type)
        self.stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # what was never begun has no `finally` that would run, so the stream itself cannot give its place back
        async with self.stack:
            await super().__call__(scope, receive, send)
