"""The guard: whatever the policy says and the judges find, no text leaves before it was judged safe with all before it.

Policy and judges are scripted here, as the property is the guard's own; tests/integration/serve has the real ones.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.config.guard import GuardMode
from serve.gateway.bodies import CHAT, COMPLETIONS
from serve.gateway.failures import JudgeTimeout
from serve.gateway.guard import WITHHELD, Piece, _Window, all_of
from serve.gateway.sampling import Delta
from tests.unit.serve.gateway.scripted import REFUSAL, Judged, Script, Stream, Told, text_of

Cost = Callable[[str, bool], float]
WITHHOLDING: tuple[GuardMode, ...] = ("withhold", "best_of", "regenerate")


def words(*texts: str, reason: str = "stop") -> list[Delta]:
    """Each a delta of one token; the last one ends the answer."""
    return [*(Delta(text, 1) for text in texts[:-1]), Delta(texts[-1], 1, reason)]


def with_word(word: str) -> Cost:
    return lambda text, whole: 1.0 if word in text else -1.0


def run(script: Script, most: int | None = None) -> Script:
    asyncio.run(script.run(most))
    return script


TEXT = st.text("ab \n", max_size=4)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    """Deltas of several tokens or none, of text or none; the finish reason comes with the last text, or alone."""
    deltas = draw(st.lists(st.builds(Delta, TEXT, st.integers(0, 5)), max_size=10))
    end = draw(st.builds(Delta, TEXT | st.just(""), st.integers(0, 2), st.sampled_from(["stop", "length"])))
    return [*deltas, end]


@st.composite
def judges(draw: st.DrawFn) -> Cost:
    """Unsafe are texts of some lengths, or all from one on; windows and whole answers are of two minds."""
    some = st.frozensets(st.integers(0, 30), max_size=6)
    window, whole, first = draw(some), draw(some), draw(st.integers(0, 40))
    return lambda text, all_of_it: 1.0 if len(text) >= first or len(text) in (whole if all_of_it else window) else -1.0


@st.composite
def scripts(draw: st.DrawFn, modes: tuple[GuardMode, ...] = WITHHOLDING, cost: Cost | None = None) -> Script:
    tokens = draw(st.integers(1, 8))
    return Script(
        draw(st.lists(streams(), min_size=1, max_size=4)),
        draw(judges()) if cost is None else cost,
        draw(st.sampled_from(modes)),
        stream=draw(st.booleans()),
        route=draw(st.sampled_from([CHAT, COMPLETIONS])),
        windows=(tokens, draw(st.integers(0, tokens - 1))),
        attempts=draw(st.integers(1, 3)),
        n=draw(st.integers(2, 4)),
        max_tokens=draw(st.none() | st.integers(1, 30)),
        seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        number=draw(st.integers(0, 3)),
    )


def expect_cleared(script: Script) -> None:
    """Every piece was covered by a verdict of safe that came before it, and is what the policy said."""
    released, cleared = "", []
    for event in script.trace:
        if isinstance(event, Judged) and not event.unsafe:
            cleared.append(event.text)
        elif isinstance(event, Piece) and event.finish_reason != WITHHELD:
            released += event.text
            assert any(text.startswith(released.strip()) for text in cleared), (released, cleared)
        elif isinstance(event, Piece):
            assert event.text == (f"\n\n{REFUSAL}" if released else REFUSAL)
    said = [
        base + text_of(script.streams[min(i, len(script.streams) - 1)]) for i, base in enumerate(script.policy.said)
    ]
    assert any(text.startswith(released) for text in said) or not released


def expect_ended(script: Script) -> None:
    """One piece has a finish reason, the last one; it was withheld, or the whole answer is safe to all judges."""
    assert [piece.finish_reason is not None for piece in script.pieces] == [*[False] * (len(script.pieces) - 1), True]
    castor = script.end.castor
    assert castor is not None
    withheld = script.end.finish_reason == WITHHELD
    assert castor["judged"]
    assert castor["withheld"] == castor["unsafe"] == withheld
    if not withheld:
        assert Judged(script.released.strip(), True, False) in script.trace
    if not script.stream or script.mode == "best_of":
        assert len(script.pieces) == 1
    assert [each.happened for each in script.told] == ["regenerated"] * (len(script.told) - withheld) + (
        ["withheld"] if withheld else []
    )


@given(scripts())
def test_nothing_unjudged_leaves(script: Script) -> None:
    run(script)
    expect_cleared(script)
    expect_ended(script)


@given(scripts(), st.integers(0, 5))
def test_a_judge_that_fails_ends_the_text(script: Script, calls: int) -> None:
    """Also when another verdict than the first one does not come, and whatever it would have been."""
    judges: Any = script.answer.judging
    count, cost = 0, judges.cost

    def failing(text: str, whole: bool) -> float:
        nonlocal count
        count += 1
        if count > calls:
            script.trace.append(Told("failed", text))
            raise JudgeTimeout("late")
        return cost(text, whole)

    judges.cost = failing
    try:
        run(script)
    except JudgeTimeout:
        failed = script.trace.index(
            Told("failed", next(each.answer for each in script.told if each.happened == "failed"))
        )
        assert not any(isinstance(event, Piece) for event in script.trace[failed:])
        assert all(piece.finish_reason is None for piece in script.pieces)
    else:
        expect_ended(script)
    expect_cleared(script)


@given(scripts(("annotate", *WITHHOLDING)), st.integers(0, 4))
def test_a_client_that_is_gone_leaves_no_policy_at_work(script: Script, most: int) -> None:
    run(script, most)
    assert len(script.pieces) <= most


ONE_EACH = st.lists(st.text("ab", min_size=1, max_size=4).map(lambda text: Delta(text, len(text))), max_size=12)
COUNTED = st.builds(
    lambda deltas, end: [*deltas, end], ONE_EACH, st.sampled_from([Delta("", 0, "stop"), Delta("c", 1, "stop")])
)


@given(st.lists(COUNTED, min_size=1, max_size=4), judges(), st.integers(1, 20), st.integers(1, 6), st.data())
def test_an_answer_that_goes_on_stays_within_its_tokens(
    answers: list[Stream], cost: Cost, budget: int, tokens: int, data: st.DataObject
) -> None:
    """Of streams with one character to a token, so that the text tells how many have left."""
    windows = tokens, data.draw(st.integers(0, tokens - 1))
    script = run(Script(answers, cost, "regenerate", windows=windows, attempts=4, max_tokens=budget))
    assert len(script.released) <= budget
    asked = [body["max_tokens"] for body in script.policy.bodies]
    assert asked == sorted(asked, reverse=True)
    assert asked[0] == budget
    for base, most in zip(script.policy.said, asked, strict=True):
        assert len(base) + most <= budget
    expect_cleared(script)


@given(scripts(("regenerate",)))
def test_a_stream_that_goes_on_begins_with_what_was_sent(script: Script) -> None:
    run(script)
    sent, again = "", iter(script.policy.said)
    assert next(again) == ""
    for event in script.trace:
        if isinstance(event, Piece) and event.finish_reason is None:
            sent += event.text
        elif isinstance(event, Told) and event.happened == "regenerated":
            assert next(again) == sent
    assert len(script.policy.bodies) <= script.attempts + 1
    instructed = [script.guard.instruction in str(body) for body in script.policy.bodies]
    assert instructed == [False, *[True] * (len(instructed) - 1)]


def test_windows_by_hand() -> None:
    """The second window is unsafe: the first one has left, and the rest is refused."""
    script = run(Script([words("a", "b", "c", "X", "d")], with_word("X"), windows=(2, 0)))
    assert script.trace[:3] == [
        Judged("ab", False, False),
        Piece("ab", castor={"window": {"tokens": 2, "cost": -1.0, "unsafe": False}}),
        Judged("abcX", False, True),
    ]
    assert script.told == [Told("withheld", "abcX")]
    assert script.end.text == f"\n\n{REFUSAL}"
    assert script.end.castor == {
        "judged": True, "withheld": True, "attempts": 1, "unsafe": True, "cost": 1.0, "reward": None,
        "categories": None, "flagged": [], "severity": None,
        "windows": [{"tokens": 2, "cost": -1.0, "unsafe": False}, {"tokens": 2, "cost": 1.0, "unsafe": True}],
    }  # fmt: skip


def test_an_overlap_leaves_with_the_next_window() -> None:
    script = run(Script([words("a", "b", "c", "d", "e")], with_word("X"), windows=(2, 1)))
    assert [piece.text for piece in script.pieces] == ["a", "bc", "de"]
    cut = run(Script([words("a", "b", "c", "X", "e")], with_word("cX"), windows=(3, 1)))
    assert cut.released == "ab"  # the c waited for what followed it


def test_a_regenerated_stream_by_hand() -> None:
    answers = [words("a", "b", "X", "d"), words("c", "d", "e", reason="length")]
    script = run(Script(answers, with_word("X"), "regenerate", windows=(2, 0), max_tokens=5, seed=7))
    assert [piece.text for piece in script.pieces] == ["ab", "cd", "e"]
    assert script.end.finish_reason == "length"
    assert script.end.castor is not None
    assert (script.end.castor["attempts"], script.end.castor["withheld"]) == (2, False)
    first, second = script.policy.bodies
    assert (first["max_tokens"], second["max_tokens"]) == (5, 3)
    assert first["seed"] != second["seed"]
    assert second["messages"][-1] == {"role": "assistant", "content": "ab"}
    assert second["messages"][0]["content"] == f"how ?\n\n{script.guard.instruction}"
    assert second["continue_final_message"] is True
    assert script.told == [Told("regenerated", "abXd")]


def test_the_windows_of_an_answer_are_one_stream_and_those_of_no_other() -> None:
    answers = [words("a", "b", "X", "d"), words("c", "d", "e")]
    scripts = [run(Script(answers, with_word("X"), "regenerate", windows=(2, 0))) for _ in range(2)]
    first, second = (script.judges.streams for script in scripts)
    assert len(first) == len(second) == 1
    assert not first & second


def test_a_regenerated_answer_by_hand() -> None:
    for answers, end in (([words("X"), words("X"), words("a")], "a"), ([words("X")], REFUSAL)):
        script = run(Script(answers, with_word("X"), "regenerate", stream=False, attempts=2, max_tokens=5))
        assert [piece.text for piece in script.pieces] == [end]
        assert [body["max_tokens"] for body in script.policy.bodies] == [5, 5, 5]


def test_an_answer_whose_tokens_are_used_up_is_refused() -> None:
    """All of it has left when the whole answer is found unsafe: there is nothing to go on with."""
    stream, cost = words("a", "b", "c"), (lambda text, whole: 1.0 if whole else -1.0)
    script = run(Script([stream], cost, "regenerate", windows=(1, 0), max_tokens=2))
    assert [piece.text for piece in script.pieces] == ["a", "b", f"\n\n{REFUSAL}"]
    assert len(script.policy.bodies) == 1
    assert [each.happened for each in script.told] == ["withheld"]


def seeds_of(mode: GuardMode, stream: bool, answers: int) -> list[int]:
    found = []
    for number in range(answers):
        script = run(
            Script([words("X")], with_word("X"), mode, stream=stream, attempts=2, seed=2**63 - 1, number=number)
        )
        found += [body["seed"] for body in script.policy.bodies]
    return found


@pytest.mark.parametrize("mode", ["annotate", *WITHHOLDING])
@pytest.mark.parametrize("stream", [False, True])
def test_no_two_answers_of_a_request_have_a_seed_in_common(mode: GuardMode, stream: bool) -> None:
    """Nor two of their attempts: the second attempt of one answer would be the third one of another."""
    found = seeds_of(mode, stream, 3)
    assert len(found) == 3 * {"annotate": 1, "withhold": 1, "best_of": 3, "regenerate": 3}[mode]
    assert len(set(found)) == len(found)
    assert all(-(2**63) <= seed < 2**63 for seed in found)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("answers", "costs", "rewards", "best"),
    [
        # the most helpful of the safe ones
        ("abc", {"a": -1, "b": -3, "c": -2}, {"a": 1, "b": 2, "c": 3}, "c"),
        ("abc", {"a": -1, "b": -3, "c": 2}, {"a": 1, "b": 2, "c": 3}, "b"),
        ("abc", {"a": -1, "b": 3, "c": 2}, {"a": -9, "b": 2, "c": 3}, "a"),
        # without a reward the one of least cost
        ("abc", {"a": -1, "b": -3, "c": -2}, None, "b"),
        ("abc", {"a": 1, "b": 3, "c": 0}, None, "c"),
        ("abc", {"a": 1, "b": 3, "c": 2}, {"a": 1, "b": 2, "c": 3}, None),
        ("abc", {"a": 1, "b": 3, "c": 2}, None, None),
    ],
)
def test_the_best_of_several(stream: bool, answers: str, costs: dict, rewards: dict | None, best: str | None) -> None:
    reward = None if rewards is None else rewards.__getitem__
    script = Script([words(each) for each in answers], lambda text, _: costs[text], "best_of", stream, reward=reward)
    (piece,) = run(script).pieces
    assert piece.castor is not None
    assert (piece.text, piece.castor["withheld"]) == ((best, False) if best else (REFUSAL, True))
    assert piece.castor["attempts"] == len(script.policy.bodies) == 3
    judges: Any = script.answer.judging
    assert judges.together == [3]  # asked once for all
    # the numbers are of the answer that was chosen, or would have been
    chosen = best or max(answers, key=rewards.__getitem__ if rewards else lambda each: -costs[each])
    assert piece.castor["cost"] == costs[chosen]
    assert [each.answer for each in script.told] == ([] if best else [chosen])


@given(scripts(("annotate",)), st.booleans())
def test_annotate_delivers_everything_with_its_verdict(script: Script, broken: bool) -> None:
    judges: Any = script.answer.judging
    if broken:
        judges.cost = with_failure
    run(script)
    deltas, most = script.streams[0], script.max_tokens or 10**9
    assert text_of(deltas).startswith(script.released)
    if sum(delta.tokens for delta in deltas) < most:
        assert script.released == text_of(deltas)
        assert script.end.finish_reason == deltas[-1].finish_reason
    castor = script.end.castor
    if broken:
        assert castor == {"judged": False, "error": {"code": "judge_timeout", "message": "late"}}
        assert script.told == [Told("judge_failed", script.released)]
    else:
        assert castor is not None
        (judged,) = (each for each in script.trace if isinstance(each, Judged))
        assert (judged.text, judged.whole) == (script.released.strip(), True)
        assert (castor["unsafe"], castor["withheld"]) == (judged.unsafe, False)


def with_failure(text: str, whole: bool) -> float:
    raise JudgeTimeout("late")


def test_an_answer_of_nothing_is_judged_too() -> None:
    empty = [Delta("", 0, "stop")]
    for stream in (False, True):
        script = run(Script([empty], with_word("X"), stream=stream))
        assert (script.trace[0], script.end.text, script.end.finish_reason) == (Judged("", True, False), "", "stop")
        assert run(Script([empty], lambda text, whole: 1.0, stream=stream)).end.text == REFUSAL


def test_a_window_counts_tokens_and_text_without_any() -> None:
    window = _Window("said ", 3, 1)
    for delta, full in ((Delta("", 0), False), (Delta("a", 0), False), (Delta("", 1), False), (Delta("bc", 2), True)):
        window.add(delta)
        assert window.full == full
    assert (window.said, window.new_tokens) == ("said abc", 4)
    assert window.cleared(whole=False) == "a"  # the two tokens of bc came together: one of them is within the overlap
    assert (window.new_tokens, window.full, window.sent) == (0, False, 6)
    window.add(Delta("d", 1))
    assert window.cleared(whole=False) == "bc"
    assert window.cleared(whole=True) == "d"
    assert window.cleared(whole=True) == ""


@given(st.text("ab", max_size=3), streams(), st.integers(1, 6), st.data())
def test_windows_hand_out_what_they_hold_in_its_order(
    sent: str, deltas: Stream, tokens: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, tokens - 1))
    window, out = _Window(sent, tokens, overlap), sent
    for delta in deltas:
        window.add(delta)
        if window.full:
            out += window.cleared(whole=False)
            assert window.said.startswith(out)
            assert window.sent == len(out)
            assert window.counted - overlap <= window.sent_tokens <= window.counted
    assert out + window.cleared(whole=True) == sent + text_of(deltas) == window.said


def test_the_first_failure_of_several_ends_the_others() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise JudgeTimeout("late")

    async def number(value: int) -> int:
        await asyncio.sleep(0.01 * (3 - value))
        return value

    async def both() -> None:
        assert await all_of(number(value) for value in range(4)) == [0, 1, 2, 3]
        with pytest.raises(JudgeTimeout):
            await all_of([wait(), fail(), wait()])
        await asyncio.sleep(0)
        assert ended == ["cancelled"] * 2

    asyncio.run(both())
