"""A policy that says what it is told to, and judges that rule by a text alone: doubles for the guard's tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from castor.config.guard import Guard, GuardMode
from castor.data.rows.schemas import Exchange
from serve.gateway.bodies import CHAT, Route, read
from serve.gateway.guard import WITHHELD, Answer, Piece
from serve.gateway.sampling import Delta
from serve.gateway.verdict import Rule, Verdict
from serve.judgement import Judgement

QUESTION = "how ?"
REFUSAL = "No."
Stream = Sequence[Delta]


def text_of(stream: Stream) -> str:
    return "".join(delta.text for delta in stream)


class Policy:
    """Its n-th answer is the n-th stream, or the last one. It stops at `max_tokens`."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.bodies: list[dict[str, Any]] = []
        self.said: list[str] = []  # what it was to go on behind
        self.at_work = 0

    async def whole(self, route: Route, body: dict[str, Any]) -> Delta:
        deltas = [delta async for delta in self.deltas(route, body)]
        return Delta(text_of(deltas), sum(delta.tokens for delta in deltas), deltas[-1].finish_reason)

    async def deltas(self, route: Route, body: dict[str, Any]) -> AsyncGenerator[Delta, None]:
        stream = self.streams[min(len(self.bodies), len(self.streams) - 1)]
        self.bodies.append(body)
        if route == CHAT:
            last = body["messages"][-1]
            self.said.append(last["content"] if last["role"] == "assistant" else "")
        else:
            self.said.append(body["prompt"].removeprefix(QUESTION).removeprefix(f"\n{Guard().instruction}\n"))
        left = body.get("max_tokens", 10**9)
        assert left >= 1  # vLLM refuses less
        self.at_work += 1
        try:
            for delta in stream:
                if delta.tokens > left:
                    yield Delta(delta.text[:left], left, "length")
                    return
                if delta.tokens == left and delta.finish_reason is None:
                    yield delta
                    yield Delta("", 0, "length")
                    return
                left -= delta.tokens
                yield delta
        finally:
            self.at_work -= 1


@dataclass
class Judged:
    """A verdict that was given."""

    text: str
    whole: bool
    unsafe: bool


class Judges:
    """`cost` gives the cost of a text, or raises."""

    def __init__(self, cost: Callable[[str, bool], float], reward: Callable[[str], float] | None, trace: list) -> None:
        self.cost, self.reward, self.trace = cost, reward, trace
        self.streams = set[str | None]()
        self.together = list[int]()  # how many texts each call was for that was for several

    async def verdict(self, text: Exchange, rule: Rule, *, whole: bool = True, stream: str | None = None) -> Verdict:
        assert whole or stream
        self.streams.add(stream)
        assert (text.prompt, text.history) == (QUESTION, ())
        reward = None if self.reward is None else self.reward(text.response)
        verdict = rule.verdict(Judgement(self.cost(text.response, whole), reward))
        self.trace.append(Judged(text.response, whole, verdict.unsafe))
        return verdict

    async def verdicts(self, texts: Sequence[Exchange], rule: Rule) -> list[Verdict]:
        self.together.append(len(texts))
        return [await self.verdict(text, rule) for text in texts]


@dataclass
class Told:
    """What the audit log was told."""

    happened: str
    answer: str


@dataclass
class Script:
    """One answer behind a guard, and all that happened, in its order: verdicts, pieces, lines of the audit log."""

    streams: Sequence[Stream]
    cost: Callable[[str, bool], float]
    mode: GuardMode = "withhold"
    stream: bool = True
    route: Route = CHAT
    windows: tuple[int, int] = (4, 0)  # tokens, overlap
    attempts: int = 1
    n: int = 3
    max_tokens: int | None = None
    seed: int | None = None
    number: int = 0
    reward: Callable[[str], float] | None = None
    trace: list[Judged | Piece | Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        question: dict[str, Any] = (
            {"messages": [{"role": "user", "content": QUESTION}]} if self.route == CHAT else {"prompt": QUESTION}
        )
        body = {"model": "m", "stream": self.stream, "max_tokens": self.max_tokens, "seed": self.seed} | question
        tokens, overlap = self.windows
        values = {"windows": {"tokens": tokens, "overlap": overlap}, "attempts": self.attempts, "n": self.n}
        self.guard = Guard.model_validate(values | {"refusal": REFUSAL})
        self.policy = Policy(self.streams)
        self.judges = judges = Judges(self.cost, self.reward, self.trace)
        ask, rule, policy = read(self.route, body, self.mode, 1000, 16), Rule(self.guard, ("cost",)), self.policy
        self.answer = Answer(ask, self.number, rule, judges, policy, self._tell)  # type: ignore[arg-type]

    async def _tell(self, happened: str, answer: str, what: Any) -> None:
        self.trace.append(Told(happened, answer))

    async def run(self, most: int | None = None) -> None:
        """Listen to all pieces, or to the first `most` of them. Raises as the answer does."""
        try:
            async with aclosing(self.answer.pieces()) as pieces:
                if most == 0:
                    return
                async for piece in pieces:
                    self.trace.append(piece)
                    if most is not None and len(self.pieces) == most:
                        return
        finally:
            assert self.policy.at_work == 0  # nothing is sampled for nobody

    @property
    def pieces(self) -> list[Piece]:
        return [each for each in self.trace if isinstance(each, Piece)]

    @property
    def told(self) -> list[Told]:
        return [each for each in self.trace if isinstance(each, Told)]

    @property
    def released(self) -> str:
        """What left of the policy's text."""
        return "".join(piece.text for piece in self.pieces if piece.finish_reason != WITHHELD)

    @property
    def end(self) -> Piece:
        return self.pieces[-1]
