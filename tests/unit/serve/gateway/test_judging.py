"""Asking the judges: who is asked of what, within which time, and that nonsense is an error and never a verdict."""

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from ray.exceptions import RayActorError, RayTaskError

from castor.config.guard import Guard
from castor.data.rows.schemas import Exchange
from serve.gateway.calls import calling
from serve.gateway.failures import JudgeError, JudgeTimeout, JudgeUnreachable, JudgeUnusable, TooLongToJudge
from serve.gateway.judging import Judging, _checked
from serve.gateway.metrics import Metrics
from serve.gateway.verdict import Rule, Verdict
from serve.judgement import JUDGES, Judgement, JudgeName, Moderation
from serve.judges import TooLong

T = TypeVar("T")
TEXT = Exchange("how ?", "so")
SAFE, HARM = Moderation({"harm": 0.1}, (), None), Moderation({"harm": 0.9}, ("harm",), None)
ALL = Judgement(-2.0, 1.0, SAFE)


class Scripted(Judging):
    """Judges that give one answer after the other, errors among them; the last one again and again."""

    def __init__(self, *answers: Any, present: tuple[JudgeName, ...] = JUDGES) -> None:
        super().__init__(None, present, Metrics())  # type: ignore[arg-type]
        self.answers, self.asked, self.seconds = list(answers), list[tuple[JudgeName, ...]](), list[float]()

    async def _call(
        self, texts: list[Exchange], asked: tuple[JudgeName, ...], stream: str | None, seconds: float
    ) -> Any:
        self.asked.append(asked)
        self.seconds.append(seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        with calling():
            if isinstance(answer, BaseException):
                raise answer
        return answer

    def failures(self) -> dict[str, float]:
        samples = next(iter(self.metrics.judge_failures.collect())).samples
        return {each.labels["code"]: each.value for each in samples if each.name.endswith("_total")}


def verdict(judging: Judging, *, whole: bool = True, **guard: Any) -> Verdict:
    return asyncio.run(judging.verdict(TEXT, Rule(Guard.model_validate(guard), judging.present), whole=whole))


@pytest.mark.parametrize(
    "answer",
    [
        None, "safe", 0.0, {}, ALL, (ALL,), [], [ALL, ALL], [None], [0.0], ["safe"], [{"cost": -1.0}], [Judgement()],
        [Judgement(-1.0, 1.0)], [Judgement(math.nan, 1.0, SAFE)], [Judgement(-1.0, math.inf, SAFE)],
        [Judgement(-1.0, 1.0, 0.5)], [Judgement(SAFE, 1.0, SAFE)], [Judgement("-1", 1.0, SAFE)],
        [Judgement(-1.0, 1.0, Moderation({}, (), None))], [Judgement(-1.0, 1.0, Moderation({"a": 2.0}, (), None))],
        [Judgement(-1.0, 1.0, Moderation({"a": 0.9}, ("a",), 0))],
        [Judgement(-1.0, 1.0, Moderation({"a": 0.9}, ("b",), 1))],
        [Judgement(-1.0, 1.0, Moderation(None, None, None))],
    ],
    ids=str,
)  # fmt: skip
def test_nonsense_is_an_error_of_its_own(answer: Any) -> None:
    with pytest.raises(JudgeUnusable):
        _checked(answer, 1, JUDGES)
    judging = Scripted(answer)
    with pytest.raises(JudgeUnusable):
        verdict(judging)
    assert judging.failures() == {"judge_unusable": 1.0}


def test_one_text_that_cannot_be_judged_spoils_the_answer() -> None:
    assert _checked([ALL, ALL], 2, JUDGES) == [ALL, ALL]
    assert _checked([], 0, JUDGES) == []
    with pytest.raises(JudgeUnusable, match="the cost model gave a number that is not finite"):
        _checked([ALL, Judgement(math.nan, 1.0, SAFE)], 2, JUDGES)


@pytest.mark.parametrize(
    ("answers", "whole", "guard", "asked", "unsafe"),
    [
        ([ALL], True, {}, [JUDGES], False),
        ([Judgement(-2.0)], False, {}, [("cost",)], False),
        # suspicious, or unsafe: all are asked
        ([Judgement(-0.1), Judgement(-0.1, 1.0, SAFE)], False, {}, [("cost",), JUDGES], False),
        ([Judgement(-0.1), Judgement(-0.1, 1.0, HARM)], False, {}, [("cost",), JUDGES], True),
        ([Judgement(1.0), Judgement(1.0, 1.0, SAFE)], False, {}, [("cost",), JUDGES], True),
        ([Judgement(-2.0, None, HARM)], False, {"combine": "all"}, [("cost", "moderation")], False),
        ([Judgement(-2.0, None, HARM)], False, {"windows": {"first_stage": "all"}}, [("cost", "moderation")], True),
    ],
)
def test_who_judges_windows_and_whole_answers(
    answers: list[Judgement], whole: bool, guard: dict, asked: list, unsafe: bool
) -> None:
    judging = Scripted(*([each] for each in answers))
    assert verdict(judging, whole=whole, **guard).unsafe == unsafe
    assert judging.asked == asked


def test_both_stages_share_one_deadline() -> None:
    judging = Scripted([Judgement(-0.1)], [ALL])
    verdict(judging, whole=False, deadline_s=5.0)
    first, second = judging.seconds
    assert 0 < second <= first <= 5.0


def test_several_whole_answers_are_asked_for_in_one_call() -> None:
    """And one without a usable number leaves none of them a verdict."""
    judging, rule = Scripted([ALL, Judgement(2.0, 1.0, SAFE)]), Rule(Guard(), JUDGES)
    assert [each.unsafe for each in asyncio.run(judging.verdicts([TEXT, TEXT], rule))] == [False, True]
    assert judging.asked == [JUDGES]
    judging = Scripted([ALL, Judgement(math.nan, 1.0, SAFE)])
    with pytest.raises(JudgeUnusable):
        asyncio.run(judging.verdicts([TEXT, TEXT], rule))


def failed(cause: Exception) -> RayTaskError:
    return RayTaskError("judge", str(cause), cause)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (TimeoutError(), JudgeTimeout, "did not answer in time"),
        (failed(TooLong("9 tokens")), TooLongToJudge, "longer than the judges read"),
        (failed(ValueError("secret text")), JudgeUnusable, "^a judge failed on this text$"),
        (RayActorError(), JudgeUnreachable, "no judge can be reached"),
    ],
)
def test_whatever_goes_wrong_is_told_apart(answer: Exception, error: type[JudgeError], message: str) -> None:
    judging, begun = Scripted(answer), time.monotonic()
    with pytest.raises(error, match=message):
        verdict(judging, deadline_s=0.5)
    assert time.monotonic() - begun < 5
    assert judging.failures() == {error.code: 1.0}


def test_another_replica_is_asked_when_one_has_died() -> None:
    judging = Scripted(RayActorError(), [ALL])
    assert not verdict(judging).unsafe
    assert judging.asked == [JUDGES, JUDGES]
    assert judging.failures() == {}
    with pytest.raises(JudgeUnreachable, match="the judges died, and were not back in time"):
        verdict(Scripted(RayActorError(), TimeoutError()))


class Hanging(Judging):
    """Judges behind a handle that never answers, and notices that it is not listened to any more."""

    class Response:
        def __init__(self) -> None:
            self.cancelled = False

        def __await__(self) -> Any:
            return asyncio.sleep(60).__await__()

        def cancel(self) -> None:
            self.cancelled = True

    class Handle:
        def __init__(self, response: "Hanging.Response") -> None:
            self.response, self.judge = response, self

        def remote(self, texts: Any, asked: Any, stream: Any) -> "Hanging.Response":
            return self.response

    def __init__(self) -> None:
        self.response = Hanging.Response()
        super().__init__(Hanging.Handle(self.response), JUDGES, Metrics())  # type: ignore[arg-type]


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_judges_that_hang_are_given_up_in_time() -> None:
    judging, begun = Hanging(), time.monotonic()
    with pytest.raises(JudgeTimeout):
        verdict(judging, deadline_s=0.1)
    assert 0.1 <= time.monotonic() - begun < 10
    assert judging.response.cancelled


def test_a_client_that_is_gone_asks_no_more() -> None:
    async def leave() -> bool:
        judging = Hanging()
        asking = asyncio.create_task(judging.verdict(TEXT, Rule(Guard(), JUDGES)))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
        return judging.response.cancelled

    assert run(leave())
