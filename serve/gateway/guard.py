"""The guard: what becomes of an answer. Every mode ends in pieces of text, each judged before it is handed out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

from castor.data.rows.schemas import Exchange
from serve.gateway.audit import Event
from serve.gateway.bodies import Ask
from serve.gateway.failures import JudgeError
from serve.gateway.judging import Judging
from serve.gateway.sampling import Delta, Sampling
from serve.gateway.verdict import Rule, Verdict

T = TypeVar("T")
WITHHELD = "content_filter"  # finish_reason


@dataclass(frozen=True)
class Piece:
    """Text that may leave. The last piece of an answer has a finish reason, and what is told of the whole answer."""

    text: str
    finish_reason: str | None = None
    castor: dict[str, Any] | None = None


@dataclass
class Answer:
    """One of a request's answers, on its way through the guard."""

    ask: Ask
    number: int  # among the answers of the request
    rule: Rule
    judging: Judging
    sampling: Sampling
    told: Callable[[Event, str, Verdict | JudgeError], Awaitable[None]]  # of an answer, for the audit log
    attempts: int = 0
    windows: list[dict[str, Any]] = field(default_factory=list)
    sent_tokens: int = 0  # of a stream, when it went back to what was sent

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer, piece by piece where it is streamed. Raises a RequestError where it cannot go on."""
        mode, stream = self.ask.mode, self.ask.stream
        if mode == "annotate":
            made = self._annotated()
        elif mode == "best_of":
            made = self._best_of()
        elif stream:
            made = self._windows()
        else:
            made = self._whole()
        async with aclosing(made) as pieces:
            async for piece in pieces:
                yield piece

    async def judge(self, text: str, *, whole: bool = True, stream: str | None = None) -> Verdict:
        """Of the question with this answer, or with what there is of it."""
        return await self.judging.verdict(self._exchange(text), self.rule, whole=whole, stream=stream)

    def _exchange(self, text: str) -> Exchange:
        """Judges read texts as in training: stripped."""
        return self.ask.exchange._replace(response=text.strip())

    async def _annotated(self) -> AsyncGenerator[Piece, None]:
        """Everything leaves; the verdict follows, or that there is none."""
        self.attempts, said, reason = 1, "", "stop"
        if self.ask.stream:
            async with aclosing(self._deltas(self.ask.sample(self.number))) as deltas:
                async for delta in deltas:
                    said += delta.text
                    reason = delta.finish_reason or reason
                    if delta.text:
                        yield Piece(delta.text)
        else:
            answer = await self._sample(self.ask, self.number)
            said, reason = answer.text, answer.finish_reason or reason
        try:
            castor = self._castor(await self.judge(said), withheld=False)
        except JudgeError as error:
            await self.told("judge_failed", said, error)
            castor = {"judged": False, "error": {"code": error.code, "message": error.message}}
        yield Piece("" if self.ask.stream else said, reason, castor)

    async def _whole(self) -> AsyncGenerator[Piece, None]:
        """Judged at its end. `regenerate` asks again, with an instruction, as often as the guard allows."""
        guard, ask = self.rule.guard, self.ask
        while True:
            answer = await self._sample(ask, self._next_seed)
            self.attempts += 1
            verdict = await self.judge(answer.text)
            if not verdict.unsafe:
                yield Piece(answer.text, answer.finish_reason, self._castor(verdict, withheld=False))
                return
            if ask.mode != "regenerate" or self.attempts > guard.attempts:
                yield await self._refusal(answer.text, verdict, "")
                return
            await self.told("regenerated", answer.text, verdict)
            ask = self.ask.instructed(guard.instruction)

    async def _best_of(self) -> AsyncGenerator[Piece, None]:
        """Several answers, of which the most helpful safe one leaves; without a reward model, the one of least cost."""
        n = self.rule.guard.n
        # seeds of different answers of a request must not meet
        answers = await all_of(self._sample(self.ask, self.number * n + i) for i in range(n))
        self.attempts = n
        verdicts = await self.judging.verdicts([self._exchange(answer.text) for answer in answers], self.rule)
        safe = [i for i in range(n) if not verdicts[i].unsafe]
        if not safe:
            best = max(range(n), key=lambda i: _merit(verdicts[i]))
            yield await self._refusal(answers[best].text, verdicts[best], "")
            return
        best = max(safe, key=lambda i: _merit(verdicts[i]))
        yield Piece(answers[best].text, answers[best].finish_reason, self._castor(verdicts[best], withheld=False))

    async def _windows(self) -> AsyncGenerator[Piece, None]:
        """Window by window: what is sent was judged with all before it.

        Where a window is unsafe, nothing of it leaves. `regenerate` goes back to what was sent, and on from there.
        """
        guard, ask, sent, name = self.rule.guard, self.ask, "", uuid4().hex
        budget = self.ask.body.get("max_tokens")
        while True:
            unsafe: Verdict | None = None
            changes = ask.continued(sent)
            if budget is not None:
                changes["max_tokens"] = budget - self.sent_tokens
            body = ask.sample(self._next_seed, **changes)
            self.attempts += 1
            window = _Window(sent, guard.windows.tokens, guard.windows.overlap)
            async with aclosing(self._deltas(body)) as deltas:
                async for delta in deltas:
                    window.add(delta)
                    if delta.finish_reason is None and not window.full:
                        continue
                    whole = delta.finish_reason is not None
                    verdict = await self.judge(window.said, whole=whole, stream=name)
                    self._note(window.new_tokens, verdict)
                    if verdict.unsafe:
                        unsafe = verdict
                        break
                    clear = window.cleared(whole)
                    if clear and not whole:
                        yield Piece(clear, castor={"window": self.windows[-1]})
                    sent += clear
                    if whole:
                        yield Piece(clear, delta.finish_reason, self._castor(verdict, withheld=False))
                        return
            assert unsafe is not None  # the stream ends with a finish reason, or with an error
            self.sent_tokens += window.sent_tokens
            used_up = budget is not None and self.sent_tokens >= budget
            if ask.mode != "regenerate" or self.attempts > guard.attempts or used_up:
                yield await self._refusal(window.said, unsafe, sent)
                return
            await self.told("regenerated", window.said, unsafe)
            ask = self.ask.instructed(guard.instruction)

    @property
    def _next_seed(self) -> int:
        """What is added to the seed: further attempts of one answer do not meet those of another."""
        each = self.rule.guard.attempts + 1 if self.ask.mode == "regenerate" else 1
        return self.number * each + self.attempts

    async def _sample(self, ask: Ask, number: int) -> Delta:
        return await self.sampling.whole(ask.route, ask.sample(number))

    def _deltas(self, body: dict[str, Any]) -> Any:
        return self.sampling.deltas(self.ask.route, body)

    def _note(self, tokens: int, verdict: Verdict) -> None:
        self.windows.append({"tokens": tokens, "cost": verdict.judgement.cost, "unsafe": verdict.unsafe})

    def _castor(self, verdict: Verdict, *, withheld: bool) -> dict[str, Any]:
        castor = {"judged": True, "withheld": withheld, "attempts": self.attempts, **verdict.wire}
        return castor | ({"windows": self.windows} if self.windows else {})

    async def _refusal(self, said: str, verdict: Verdict, sent: str) -> Piece:
        await self.told("withheld", said, verdict)
        text = ("\n\n" if sent else "") + self.rule.guard.refusal
        return Piece(text, WITHHELD, self._castor(verdict, withheld=True))


class _Window:
    """The text of a stream, and how much of it has been judged and handed out."""

    def __init__(self, sent: str, tokens: int, overlap: int) -> None:
        self.said, self.sent = sent, len(sent)  # characters that have left
        self.tokens, self.overlap = tokens, overlap
        self.counted = self.judged = self.sent_tokens = 0  # tokens of this stream
        self.marks: list[tuple[int, int]] = []  # (tokens, characters) where a delta ended

    def add(self, delta: Delta) -> None:
        self.said += delta.text
        self.counted += max(delta.tokens, 1 if delta.text else 0)
        self.marks.append((self.counted, len(self.said)))

    @property
    def new_tokens(self) -> int:
        return self.counted - self.judged

    @property
    def full(self) -> bool:
        return self.new_tokens >= self.tokens

    def cleared(self, whole: bool) -> str:
        """What may leave now that all so far was judged safe: all of it, or all but the overlap."""
        self.judged = self.counted
        limit = self.counted if whole else self.counted - self.overlap
        end = len(self.said) if whole else max((at for tokens, at in self.marks if tokens <= limit), default=self.sent)
        self.sent_tokens = max(limit, 0)
        end = max(end, self.sent)
        clear, self.sent = self.said[self.sent : end], end
        return clear


def _merit(verdict: Verdict) -> float:
    reward, cost = verdict.judgement.reward, verdict.judgement.cost
    return reward if reward is not None else -(cost or 0.0)


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order. The first failure cancels the rest, and is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
