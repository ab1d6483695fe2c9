"""Malformed request bodies are answered with 400 in OpenAI's error shape, whichever route of vLLM's app they are for.

Python's JSON parser lets through what no tokenizer, response or message between processes can hold: halves of surrogate
pairs, NaN, integers of more than 64 bits. And a route's request model may stumble over a value of another type than it
expects instead of refusing it.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_DEPTH = 200  # of lists and objects in each other: far from the interpreter's own limit, wherever they are walked
TOO_DEEP = f"the body is nested more than {MAX_DEPTH} deep"


class JSONBodies:
    """ASGI middleware of a FastAPI app: refuses JSON bodies that `parse` or the route's request model cannot read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What has no JSON body is passed on; an empty one is for the route to judge."""
        if scope["type"] != "http" or not _is_json(scope):
            await self.app(scope, receive, send)
            return
        body = await Request(scope, receive).body()
        try:
            value = parse(body) if body else None
        except ValueError as error:
            await refusal(str(error))(scope, receive, send)
            return
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        try:
            await self.app(scope, replay, send)
        except Exception as error:
            field = getattr(scope.get("route"), "body_field", None)
            if field is None or _can_read(field.field_info.annotation, value):
                raise
            # the route was never entered, so no response has been started
            told = f"the body holds a value of another type than its field: {error}"
            await refusal(told)(scope, receive, send)


def parse(body: bytes) -> Any:
    """The value of a JSON body. Raises ValueError, which says why, when it is none, or holds what nobody can handle."""
    try:
        value = json.loads(body)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from None
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, dict | list):
            if depth == MAX_DEPTH:
                raise ValueError(TOO_DEEP)
            children = [*part, *part.values()] if isinstance(part, dict) else part
            waiting.extend((child, depth + 1) for child in children)
        elif isinstance(part, str) and not _is_unicode(part):
            raise ValueError(f"the text {ascii(part)[:100]} holds half of a surrogate pair, which is no character")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("the body holds a number that is not finite")
        elif isinstance(part, int) and not -(2**63) <= part < 2**63:
            raise ValueError("the body holds an integer of more than 64 bits")
    return value


def refusal(message: str) -> JSONResponse:
    """400 in OpenAI's error shape."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return JSONResponse({"error": error}, status_code=400)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(scope: Scope) -> bool:
    """Whether FastAPI would parse the body as JSON."""
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
    return bool(kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")))


def _can_read(model: Any, value: Any) -> bool:
    """Whether the model comes to a judgement of the value, be it that it does not fit."""
    try:
        TypeAdapter(model).validate_python(value)
    except ValidationError:
        return True
    except Exception:  # a validator of vLLM's that fell over, in whatever way: the caller refuses the body with a 400
        return False
    return True
