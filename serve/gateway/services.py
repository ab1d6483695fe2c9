"""The judges as services: `/v1/moderations` in OpenAI's format, `/v1/score`; and the votes of the arena."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from castor.config.guard import Guard
from castor.data.rows.schemas import Exchange
from castor.io.files import make_folder
from serve.gateway.bodies import Body, NotBlank, Text
from serve.gateway.failures import BadRequest
from serve.gateway.judging import Judging
from serve.gateway.verdict import Rule
from serve.judgement import JudgeName

MAX_ITEMS = 256


class Turn(Body):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Text


class ScoreItem(Body):
    """A prompt and a finished response to it, which may be empty: a policy can end its answer at once.

    Or a whole conversation as `messages`, of user and assistant in turn, which ends with the response.
    """

    prompt: NotBlank | None = None
    response: Text | None = None
    messages: list[Turn] | None = Field(None, min_length=2, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreItem:
        if self._is_pair == (self.messages is not None):
            raise ValueError("give either prompt and response, or messages")
        return self

    @model_validator(mode="after")
    def _turns_alternate(self) -> ScoreItem:
        messages = self.messages or []
        if len(messages) % 2 or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(messages)):
            raise ValueError("messages must be of user and assistant in turn, and end with the assistant's response")
        if any(m.role == "user" and not m.content.strip() for m in messages):
            raise ValueError("a user's message must not be blank")
        return self

    @property
    def _is_pair(self) -> bool:
        """Whether it is given as prompt and response. Raises ValueError when one of them is missing."""
        if (self.prompt is None) != (self.response is None):
            raise ValueError("give either prompt and response, or items, or messages")
        return self.prompt is not None

    def conversation(self) -> Exchange:
        """The texts to judge."""
        if self.messages is None:
            assert self.prompt is not None
            assert self.response is not None
            return Exchange(self.prompt, self.response)
        texts = [message.content for message in self.messages]
        *history, (prompt, response) = zip(texts[::2], texts[1::2], strict=True)
        return Exchange(prompt, response, tuple(history))


class ScoreRequest(ScoreItem):
    """One item, or several as `items`."""

    items: list[ScoreItem] | None = Field(None, min_length=1, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        if sum([self._is_pair, self.messages is not None, self.items is not None]) != 1:
            raise ValueError("give either prompt and response, or items, or messages")
        return self

    def texts(self) -> list[Exchange]:
        """The texts to judge, whichever form they came in."""
        return [item.conversation() for item in self.items or [self]]


class ModerationContext(Body):
    """Castor's own: the question that the inputs answer."""

    question: NotBlank | None = None


class ModerationRequest(Body):
    """OpenAI's, for texts. With a question the *pair* is judged: does the answer neutralise the risk?"""

    input: NotBlank | list[NotBlank] = Field(min_length=1)
    model: str | None = Field(None, max_length=256)
    castor: ModerationContext = Field(default_factory=ModerationContext)

    @model_validator(mode="after")
    def _few(self) -> ModerationRequest:
        if isinstance(self.input, list) and len(self.input) > MAX_ITEMS:
            raise ValueError(f"input holds at most {MAX_ITEMS} texts")
        return self

    def texts(self) -> list[Exchange]:
        """The texts to judge. One without a question stands in the question's place, and has no answer."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        question = self.castor.question
        return [Exchange(text, "") if question is None else Exchange(question, text) for text in inputs]


class Vote(Body):
    """One vote of the arena: which of two answers is more helpful, which is safer, and which of them are harmful."""

    prompt: NotBlank
    response_0: Text
    response_1: Text
    model_0: str = Field(max_length=256)
    model_1: str = Field(max_length=256)
    better: Literal[0, 1]
    safer: Literal[0, 1]
    harmful_0: bool
    harmful_1: bool

    @model_validator(mode="after")
    def _agree(self) -> Vote:
        if self.harmful_0 != self.harmful_1 and (self.harmful_0, self.harmful_1)[self.safer]:
            raise ValueError("the answer that is safer is called harmful, and the other one is not")
        return self

    def row(self) -> dict[str, Any]:
        """As PKU-SafeRLHF writes a row."""
        return {
            "prompt": self.prompt,
            "response_0": self.response_0,
            "response_1": self.response_1,
            "prompt_source": "castor arena",
            "response_0_source": self.model_0,
            "response_1_source": self.model_1,
            "is_response_0_safe": not self.harmful_0,
            "is_response_1_safe": not self.harmful_1,
            "better_response_id": self.better,
            "safer_response_id": self.safer,
        }


class Votes:
    """The file of votes, one row a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writing = asyncio.Lock()

    async def store(self, vote: Vote) -> None:
        """Append a row. Raises OSError where it cannot be written."""
        line = json.dumps(vote.row(), ensure_ascii=False) + "\n"
        async with self.writing:
            await asyncio.to_thread(self._append, line)

    def _append(self, line: str) -> None:
        make_folder(self.path.parent)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)  # one write in append mode: rows of several gateways do not mix


class Services:
    """What the judges answer directly."""

    def __init__(self, judging: Judging, name: str, guard: Guard) -> None:
        self.judging, self.name = judging, name
        self.rule = Rule(guard, judging.present)

    async def score(self, request: ScoreRequest) -> dict[str, Any]:
        """Normalised end scores of each item. `unsafe` is cost > 0; `reward` is null where there is no reward model."""
        asked: tuple[JudgeName, ...] = tuple(name for name in self.judging.present if name != "moderation")
        if "cost" not in asked:
            raise BadRequest("no cost model is served here")
        judgements = await self.judging.judge(request.texts(), asked, self._deadline())
        scores = [
            {"cost": each.cost, "reward": each.reward, "unsafe": each.cost is not None and each.cost > 0}
            for each in judgements
        ]
        return {"model": self.name, "scores": scores}

    async def moderate(self, request: ModerationRequest) -> dict[str, Any]:
        """OpenAI's results, by the guard's rule, with a `castor` block. Without a moderation model: the cost's view."""
        asked: tuple[JudgeName, ...] = tuple(name for name in self.judging.present if name != "reward")
        if not asked:
            raise BadRequest("no cost and no moderation model is served here")
        judgements = await self.judging.judge(request.texts(), asked, self._deadline())
        results = []
        for judgement in judgements:
            verdict = self.rule.verdict(judgement)
            scores = {} if judgement.moderation is None else judgement.moderation.probabilities
            results.append(
                {
                    "flagged": verdict.unsafe,
                    "categories": {name: name in verdict.flagged for name in scores},
                    "category_scores": scores,
                    "category_applied_input_types": {name: ["text"] for name in scores},
                    "castor": verdict.wire | {"pair": request.castor.question is not None},
                }
            )
        return {"id": f"modr-{uuid.uuid4().hex}", "model": self.name, "results": results}

    def _deadline(self) -> float:
        return time.monotonic() + self.rule.guard.deadline_s
