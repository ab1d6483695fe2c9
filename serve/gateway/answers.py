"""Answers in OpenAI's shape, whole and in chunks, of chats and of completions."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from serve.gateway.bodies import CHAT, Ask
from serve.gateway.guard import Piece
from serve.gateway.sampling import Usage

DONE = b"data: [DONE]\n\n"


class Shape:
    """The shape of one request's answer."""

    def __init__(self, ask: Ask) -> None:
        self.ask, self.chat = ask, ask.route == CHAT
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def whole(self, pieces: list[Piece], usage: Usage, version: str) -> dict[str, Any]:
        """A response, of the one piece of each answer."""
        kind = "chat.completion" if self.chat else "text_completion"
        choices = [self._choice(number, piece) for number, piece in enumerate(pieces)]
        return self._frame(kind, version) | {"choices": choices, "usage": usage.wire()}

    def opening(self, number: int, version: str) -> bytes | None:
        """The first event of a streamed answer; completions have none."""
        if not self.chat:
            return None
        choice = {"index": number, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return event(self._frame(self._chunk, version) | {"choices": [choice]})

    def chunk(self, number: int, piece: Piece, version: str) -> bytes:
        """A piece of a streamed answer as an event."""
        text = {"delta": {"content": piece.text} if piece.text else {}} if self.chat else {"text": piece.text}
        choice = {"index": number, **text, "logprobs": None, "finish_reason": piece.finish_reason}
        if piece.castor is not None:
            choice["castor"] = piece.castor
        return event(self._frame(self._chunk, version) | {"choices": [choice]})

    def usage(self, usage: Usage, version: str) -> bytes:
        """The last event of a stream whose client has asked for it."""
        return event(self._frame(self._chunk, version) | {"choices": [], "usage": usage.wire()})

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _frame(self, kind: str, version: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": version,
            "castor": {"guard": self.ask.mode, "policy": version},
        }

    def _choice(self, number: int, piece: Piece) -> dict[str, Any]:
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": piece.text}} if self.chat else {"text": piece.text}
        )
        content |= {"index": number, "logprobs": None, "finish_reason": piece.finish_reason}
        return content if piece.castor is None else content | {"castor": piece.castor}


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return on_one_line(b"data: " + json.dumps(value, ensure_ascii=False).encode()) + b"\n\n"


def on_one_line(content: bytes) -> bytes:
    """JSON in UTF-8, or events of it, without the characters that end a line for some clients and not for others.

    Python's `str.splitlines` and all that is built on it (httpx's `iter_lines`) take U+0085, U+2028 and U+2029 for line
    breaks; server-sent events and JSON do not. In JSON they stand in strings only, where their escapes mean the same.
    """
    for character in "\u0085\u2028\u2029":
        content = content.replace(character.encode(), f"\\u{ord(character):04x}".encode())
    return content
