"""The gateway's routes, as one FastAPI app."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Scope_

from castor.data.rows.schemas import Exchange
from serve.gateway.bodies import CHAT, COMPLETIONS, ChatBody, CompletionBody, Route, encoded, head_of
from serve.gateway.completions import Completions
from serve.gateway.door import Caller, Door, answered, refusal
from serve.gateway.errors import RequestError
from serve.gateway.failures import BadRequest, UnknownModel
from serve.gateway.scope import Scope
from serve.gateway.services import ModerationRequest, ScoreRequest, Services, Vote, Votes

PAGE = Path(__file__).parents[1] / "page"
POLICY = "; ".join(  # of the page's content: nothing but what is served here runs or is asked
    [
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    ]
)  # fmt: skip
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", POLICY.encode()),
]
MOST_HEADERS = 100
READY_S = 20.0
BODIES = (ChatBody, CompletionBody, ModerationRequest, ScoreRequest, Vote)
_REFERENCES = "#/components/schemas/{model}"

ERRORS = {400, 401, 403, 404, 408, 413, 429, 502, 503, 504}


class SafeHeaders:
    """ASGI middleware: what browsers are told about every answer; and requests with too many headers are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope_, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if len(scope["headers"]) > MOST_HEADERS:
            await refusal(BadRequest(f"a request has at most {MOST_HEADERS} headers"))(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, told)


def build(
    door: Door, completions: Completions, services: Services | None, votes: Votes | None, page: bool,
    more: tuple[str, ...],
) -> FastAPI:  # fmt: skip
    """The app. `more` are routes of vLLM's to hand on; the other parts are as the config has them."""
    app = FastAPI(title="Castor", description="Guarded policies, and their judges.", docs_url=None, redoc_url=None)

    app.add_middleware(SafeHeaders)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        what = {404: "there is no such route", 405: "this route takes another method"}.get(error.status_code)
        body = {"message": what or str(error.detail), "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": body}, error.status_code, error.headers)

    def completion(route: Route) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            async def work() -> Response:
                caller = await door.caller(request, Scope.GENERATE)
                return await completions.respond(route, caller, await door.json(request))

            return await answered(door, route, request, work)

        return handle

    for route, body in ((CHAT, ChatBody), (COMPLETIONS, CompletionBody)):
        app.post(route, openapi_extra=_takes(body), responses=_errors(), summary=_summary(body))(completion(route))

    @app.get("/v1/models", responses=_errors(401, 403, 503))
    async def models(request: Request) -> Response:
        async def work() -> Response:
            caller = await door.caller(request, Scope.GENERATE)
            found = [
                {
                    "id": model.name, "object": "model", "created": model.created, "owned_by": "castor",
                    "max_model_len": model.context,
                    "castor": {"guard": model.mode, "cost_limit": model.guard.cost_limit},
                }
                for model in completions.models.values()
                if caller.may_use(model.name)
            ]  # fmt: skip
            return JSONResponse({"object": "list", "data": found})

        return await answered(door, "/v1/models", request, work)

    if services is not None:
        _add_services(app, door, services)
    if votes is not None:
        _add_votes(app, door, votes)
    for path in more:
        _hand_on(app, door, completions, path)
    _add_health(app, door, completions, services)
    if page:
        _add_page(app, door, completions, services, votes)
    _document(app)
    return app


def _add_services(app: FastAPI, door: Door, services: Services) -> None:
    @app.post("/v1/score", openapi_extra=_takes(ScoreRequest), responses=_errors())
    async def score(request: Request) -> Response:
        async def work(caller: Caller) -> dict[str, Any]:
            return await services.score(await door.body(request, ScoreRequest))

        return await answered(door, "/v1/score", request, _judging(door, request, work))

    @app.post("/v1/moderations", openapi_extra=_takes(ModerationRequest), responses=_errors())
    async def moderate(request: Request) -> Response:
        async def work(caller: Caller) -> dict[str, Any]:
            return await services.moderate(await door.body(request, ModerationRequest))

        return await answered(door, "/v1/moderations", request, _judging(door, request, work))


def _judging(
    door: Door, request: Request, work: Callable[[Caller], Awaitable[dict[str, Any]]]
) -> Callable[[], Awaitable[Response]]:
    async def judged() -> Response:
        caller = await door.caller(request, Scope.JUDGE)
        async with door.place(caller, "interactive"):
            return JSONResponse(await work(caller))

    return judged


def _add_votes(app: FastAPI, door: Door, votes: Votes) -> None:
    @app.post("/v1/votes", openapi_extra=_takes(Vote), responses=_errors())
    async def vote(request: Request) -> Response:
        async def work() -> Response:
            await door.caller(request, Scope.VOTE)
            await votes.store(await door.body(request, Vote))
            return JSONResponse({"stored": True})

        return await answered(door, "/v1/votes", request, work)


def _hand_on(app: FastAPI, door: Door, completions: Completions, path: str) -> None:
    """A route of vLLM's app, of policies that have no guard."""

    async def handle(request: Request) -> Response:
        async def work() -> Response:
            caller = await door.caller(request, Scope.GENERATE)
            values = await door.json(request)
            name, _ = head_of(values)
            model = completions.models.get(name)
            if model is None or not caller.may_use(model.name):
                raise UnknownModel("there is no such model for you", param="model")
            if model.mode != "off":
                raise BadRequest(f"{path} is not offered for a model with a guard")
            async with door.place(caller, "interactive"):
                head, content = await model.sampling().raw(path, encoded(values))
            return Response(content, head.status, media_type=head.media_type)

        return await answered(door, path, request, work)

    app.post(path)(handle)


def _add_health(app: FastAPI, door: Door, completions: Completions, services: Services | None) -> None:
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready() -> Response:
        """Whether every policy and the judges answer now."""
        found = {name: await _answers(model.handle.ready.remote()) for name, model in completions.models.items()}
        if services is not None:
            judging = services.judging.judge(
                [Exchange("Hello", "Hello")], services.rule.every, time.monotonic() + READY_S
            )
            found["judges"] = await _answers(judging)
        return JSONResponse({"ready": found}, 200 if all(found.values()) else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        try:
            await door.caller(request, Scope.METRICS)
        except RequestError as error:
            return refusal(error)
        return Response(door.metrics.page(), media_type="text/plain; version=0.0.4")


async def _answers(work: Awaitable[Any]) -> bool:
    try:
        await asyncio.wait_for(work, READY_S)
    except Exception:  # whatever it is that keeps it from answering, it is not ready
        return False
    return True


def _add_page(
    app: FastAPI, door: Door, completions: Completions, services: Services | None, votes: Votes | None
) -> None:
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in (".js", ".css", ".svg")}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name], headers={"Cache-Control": "no-cache"})

    @app.get("/v1/castor", include_in_schema=False)
    async def about(request: Request) -> Response:
        async def work() -> Response:
            caller = await door.caller(request, Scope.GENERATE)
            offered = [model for model in completions.models.values() if caller.may_use(model.name)]
            return JSONResponse(
                {
                    "models": [model.name for model in offered],
                    "guard": offered[0].mode if offered else "off",
                    "keys": door.verifier is not None,
                    "judges": [] if services is None else list(services.judging.present),
                    "votes": votes is not None,
                }
            )

        return await answered(door, "/v1/castor", request, work)


def _takes(body: type[BaseModel]) -> dict[str, Any]:
    """The request body in the OpenAPI document: bodies are read by hand, so that every fault has OpenAI's shape."""
    schema = {"$ref": _REFERENCES.format(model=body.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _document(app: FastAPI) -> None:
    """Put what request bodies are made of into the OpenAPI document."""
    made = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            bodies = [(body, "validation") for body in BODIES]
            _, found = models_json_schema(bodies, ref_template=_REFERENCES)  # type: ignore[arg-type]
            made().setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
        return made()

    app.openapi = document  # type: ignore[method-assign]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": "an error in OpenAI's shape"} for status in sorted(statuses or ERRORS)}


def _summary(body: Any) -> str:
    return str(body.__doc__).splitlines()[0]
