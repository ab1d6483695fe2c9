"""The door: what every request passes before it is read, and how its end is told, counted and bounded in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError

from castor.config.gateway import Gateway
from engines.request_bodies import parse
from serve.gateway.admission import Admission
from serve.gateway.errors import RequestError
from serve.gateway.failures import BadRequest, NotJSON, RequestTimeout, SlowBody, Strange, TooLarge
from serve.gateway.keys import Key
from serve.gateway.limits import Limits
from serve.gateway.metrics import Metrics
from serve.gateway.scope import Scope
from serve.gateway.verifier import Verifier

LOCAL = ("127.0.0.1", "localhost", "[::1]")
ANYBODY = "-"  # whose request it is where there are no keys
POLICY_HEADER = "X-Castor-Policy"  # name@version of what answered
BODY_S = 30.0  # for a body to come in
Read = TypeVar("Read", bound=BaseModel)

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    id: str
    key: Key | None  # None: there are no keys, and everybody may do everything

    def may_use(self, model: str) -> bool:
        """Whether the policy of this name is for this caller."""
        return self.key is None or self.key.may_use(model)


class Door:
    """Keys, rates, places and bodies."""

    def __init__(self, config: Gateway, verifier: Verifier | None, metrics: Metrics) -> None:
        self.config, self.verifier, self.metrics = config, verifier, metrics
        self.limits = Limits()
        self.admission = Admission(config.max_running, config.max_waiting, config.max_wait_s)

    async def caller(self, request: Request, scope: Scope) -> Caller:
        """Who asks. Raises a RequestError for a missing or invalid key, or one that may not do this."""
        if self.verifier is None:
            self._require_this_machine(request)
            return Caller(ANYBODY, None)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        key = await self.verifier.verify(token.strip() if scheme.lower() == "bearer" else None)
        key.require(scope)
        return Caller(key.id, key)

    async def json(self, request: Request) -> Any:
        """The JSON value of a body. Raises NotJSON, TooLarge, SlowBody, BadRequest."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise NotJSON("the body must be JSON: send the header Content-Type: application/json")
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._bytes(request)
        except TimeoutError:
            raise SlowBody(f"the body did not come in within {BODY_S:.0f} s") from None
        try:
            return parse(body)
        except ValueError as error:
            raise BadRequest(str(error)) from None

    async def body(self, request: Request, kind: type[Read]) -> Read:
        """A body of a known kind. Raises as `json`, and BadRequest for another one."""
        try:
            return kind.model_validate(await self.json(request))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            param = ".".join(str(part) for part in first["loc"])
            what = first["msg"].removeprefix("Value error, ")
            raise BadRequest(f"{param}: {what}" if param else what, param=param or None) from None

    @asynccontextmanager
    async def place(self, caller: Caller, priority: Any) -> AsyncIterator[None]:
        """Within the caller's rate and concurrency, and in its turn. Raises RateLimited, Overloaded."""
        async with AsyncExitStack() as stack:
            if caller.key is not None:
                stack.enter_context(self.limits.request(caller.key))
            with self.metrics.waiting.labels(priority).track_inprogress():
                await stack.enter_async_context(self.admission.slot(caller.id, priority))
            stack.enter_context(self.metrics.running.track_inprogress())
            yield

    def share(self, replicas: int) -> None:
        """So many replicas of the gateway share places and rates, from now on."""
        most = self.config
        self.limits.replicas = replicas
        self.admission.resize(max(most.max_running // replicas, 1), most.max_waiting // replicas)

    def _require_this_machine(self, request: Request) -> None:
        """Raise Strange for what a page of another site sends, also when that site's name leads to this machine."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in LOCAL or (origin is not None and origin.partition("://")[2] != host):
            raise Strange("without keys only pages and programs of this machine may ask, at 127.0.0.1 or localhost")

    async def _bytes(self, request: Request) -> bytes:
        most = self.config.limits.body_kib << 10
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > most:
            raise self._too_large()
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise self._too_large()
        return bytes(body)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is longer than {self.config.limits.body_kib} KiB")


async def answered(door: Door, route: str, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
    """The response of `work`, or the error that it raises; counted, and ended when it takes too long.

    A stream goes on after it was returned, and bounds itself.
    """
    begun = time.monotonic()
    try:
        async with asyncio.timeout(door.config.limits.seconds):
            response = await work()
    except TimeoutError:
        error: RequestError = RequestTimeout(f"the request took longer than {door.config.limits.seconds:.0f} s")
        response = refusal(error)
    except RequestError as error:
        response = refusal(error)
    except Exception:
        # whatever it was, the client gets no text; the message may hold some, and is for the log's reader alone
        log.exception("a request to %s failed", route)
        response = refusal(RequestError("an error of the server's own: see its log"))
    model = response.headers.get(POLICY_HEADER, "").rpartition("@")[0]
    door.metrics.requests.labels(route, model, str(response.status_code)).inc()
    door.metrics.request_seconds.labels(route).observe(time.monotonic() - begun)
    return response


def refusal(error: RequestError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.body(), error.status, error.headers())
