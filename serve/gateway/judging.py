"""Asking the judges, within a deadline. Whatever goes wrong is an error of its own kind, never a verdict."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from castor.data.rows.schemas import Exchange
from serve.gateway.calls import ReplicaFailed, ReplicaGone, calling
from serve.gateway.failures import JudgeError, JudgeTimeout, JudgeUnreachable, JudgeUnusable, TooLongToJudge
from serve.gateway.metrics import Metrics
from serve.gateway.verdict import Rule, Verdict
from serve.judgement import Judgement, JudgeName

log = logging.getLogger("ray.serve")
RETRY_PAUSE_S = 0.2  # a replica that has died is noticed by then, or by the next time


class Judging:
    """The judges' deployment, as the gateway sees it."""

    def __init__(self, handle: DeploymentHandle, present: tuple[JudgeName, ...], metrics: Metrics) -> None:
        self.handle, self.present, self.metrics = handle, present, metrics

    async def verdict(self, text: Exchange, rule: Rule, *, whole: bool = True, stream: str | None = None) -> Verdict:
        """Of a question with its answer, by the rule of a guard. With `whole` unset it is a window of a longer answer.

        Windows of one answer have one `stream`, a name that no other answer has, so that nothing a judge keeps of it is
        used for another's text. Raises a JudgeError when there is none within the guard's deadline.
        """
        deadline = time.monotonic() + rule.guard.deadline_s
        if not whole and rule.staged:
            (first,) = await self.judge([text], rule.first, deadline, stream)
            verdict = rule.verdict(first)
            if not verdict.unsafe and not rule.suspicious(verdict):
                return verdict
        (found,) = await self.judge([text], rule.every if whole or rule.staged else rule.first, deadline, stream)
        return rule.verdict(found)

    async def verdicts(self, texts: Sequence[Exchange], rule: Rule) -> list[Verdict]:
        """Of whole answers, for which the judges are asked once. Raises a JudgeError when one has no verdict."""
        found = await self.judge(texts, rule.every, time.monotonic() + rule.guard.deadline_s)
        return [rule.verdict(each) for each in found]

    async def judge(
        self, texts: Sequence[Exchange], asked: tuple[JudgeName, ...], deadline: float, stream: str | None = None
    ) -> list[Judgement]:
        """What the judges say of texts, checked. `deadline` is one of time.monotonic(). Raises a JudgeError."""
        begun = time.monotonic()
        try:
            found = await self._ask(texts, asked, deadline, stream)
        except JudgeError as error:
            self.metrics.judge_failures.labels(error.code).inc()
            raise
        self.metrics.judge_seconds.observe(time.monotonic() - begun)
        return found

    async def _ask(
        self, texts: Sequence[Exchange], asked: tuple[JudgeName, ...], deadline: float, stream: str | None
    ) -> list[Judgement]:
        died = False  # whether a replica that was asked did
        while True:
            left = deadline - time.monotonic()
            try:
                answer = await self._call(list(texts), asked, stream, max(left, 0.0))
            except TimeoutError:
                if died:
                    raise JudgeUnreachable("the judges died, and were not back in time") from None
                raise JudgeTimeout("the judges did not answer in time") from None
            except ReplicaFailed as error:
                if str(error) == "TooLong":
                    raise TooLongToJudge(
                        "question and answer together are longer than the judges read: shorten the conversation, or "
                        "ask for fewer tokens"
                    ) from None
                log.error("a judge failed: %s", error)
                raise JudgeUnusable("a judge failed on this text") from None
            except ReplicaGone as error:
                if deadline - time.monotonic() < RETRY_PAUSE_S:
                    raise JudgeUnreachable("no judge can be reached") from None
                died = True
                log.warning("a judge died while it was asked (%s): asking again", error)
                await asyncio.sleep(RETRY_PAUSE_S)  # another replica may answer: judging changes nothing
                continue
            return _checked(answer, len(texts), asked)

    async def _call(
        self, texts: list[Exchange], asked: tuple[JudgeName, ...], stream: str | None, seconds: float
    ) -> Any:
        with calling():
            response = self.handle.judge.remote(texts, asked, stream)
            try:
                return await asyncio.wait_for(response, seconds)
            except (TimeoutError, asyncio.CancelledError):
                response.cancel()
                raise


def _checked(answer: Any, count: int, asked: tuple[JudgeName, ...]) -> list[Judgement]:
    """The judgements, if they are such. Raises JudgeUnusable."""
    if not isinstance(answer, list) or len(answer) != count or not all(isinstance(each, Judgement) for each in answer):
        raise JudgeUnusable("what the judges answered is no judgement")
    for each in answer:
        problem = each.problem(asked)
        if problem is not None:
            raise JudgeUnusable(f"{problem}")
    return answer
