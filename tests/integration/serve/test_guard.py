"""No token reaches a client that the judges of record had not cleared: every guard, streamed or not, one or several."""

from __future__ import annotations

from typing import Any

import pytest

from castor.config.data import DataSource
from castor.config.guard import Guard
from castor.data.rows.load import load_prompts
from castor.data.rows.schemas import Exchange
from castor.data.sources.report import RowReport
from tests.integration.serve.conftest import WINDOW, Server
from tests.integration.serve.load import CHAT, COMPLETIONS, Outcome, ask, ask_all

REFUSAL = Guard().refusal
ROUNDING = 1e-4  # of a cost, by what else is in a judge's batch
PROMPTS = 500  # over all guards and forms


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return load_prompts(DataSource(limit=PROMPTS), RowReport())


def expect_cleared(server: Server, outcomes: list[Outcome]) -> None:
    """All that clients had before them was safe to the cost model, and whole answers to every judge."""
    judges, answers = server.judges, [answer for outcome in outcomes for answer in outcome.answers]
    prefixes = [prefix for answer in answers for prefix in answer.prefixes]
    costs = judges.costs(prefixes)
    leaked = [prefix for prefix, cost in zip(prefixes, costs, strict=True) if cost > judges.cost_limit + ROUNDING]
    assert leaked == []
    whole = [Exchange(a.prompt, a.text.strip()) for a in answers if a.finish_reason in ("stop", "length")]
    costs = judges.costs(whole)
    clear = [text for text, cost in zip(whole, costs, strict=True) if abs(cost - judges.cost_limit) > ROUNDING]
    assert not any(judges.unsafe(clear))
    for answer in answers:
        if answer.withheld:
            assert answer.pieces[-1].strip() == REFUSAL


FORMS = [
    (mode, stream, n, route)
    for mode in ("withhold", "best_of", "regenerate")
    for stream in (False, True)
    for n, route in ((1, CHAT), (4, CHAT), (1, COMPLETIONS))
]


@pytest.mark.parametrize(("mode", "stream", "n", "route"), FORMS)
def test_nothing_unjudged_leaves(
    server: Server, prompts: list[str], mode: str, stream: bool, n: int, route: str
) -> None:
    share = -(-PROMPTS // len(FORMS))
    number = FORMS.index((mode, stream, n, route))
    mine = prompts[number * share : (number + 1) * share]
    outcomes = ask_all(server, mine, route=route, stream=stream, n=n, castor={"guard": mode})
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [(200, None)] * len(mine)
    expect_cleared(server, outcomes)
    answers = [answer for outcome in outcomes for answer in outcome.answers]
    assert all(answer.finish_reason is not None for answer in answers)
    withheld = sum(answer.withheld for answer in answers)
    assert withheld >= len(answers) * (0.2 if mode == "best_of" else 0.5)  # of a policy that is harmful nine in ten
    assert all(answer.castor["judged"] and answer.castor["withheld"] == answer.withheld for answer in answers)
    versions = {outcome.version for outcome in outcomes}
    assert versions == {"ppo_lag@0"}


def test_safe_answers_arrive_and_streams_begin_before_their_end(server: Server, prompts: list[str]) -> None:
    outcomes = ask_all(server, prompts[:100], stream=True, castor={"guard": "withhold"})
    answers = [outcome.answers[0] for outcome in outcomes]
    assert any(not answer.withheld and len(answer.pieces) > 1 for answer in answers)
    cut = [answer for answer in answers if answer.withheld and len(answer.pieces) > 1]
    assert cut  # text had left when a later window was found unsafe
    for answer in cut:
        windows = answer.castor["windows"]
        assert [window["unsafe"] for window in windows] == [False] * (len(windows) - 1) + [True]
        assert all(window["tokens"] >= WINDOW for window in windows[:-1])
    expect_cleared(server, outcomes)


def test_annotate_tells_and_withholds_nothing(server: Server, prompts: list[str]) -> None:
    for stream in (False, True):
        outcomes = ask_all(server, prompts[:20], stream=stream, castor={"guard": "annotate"})
        answers = [outcome.answers[0] for outcome in outcomes]
        assert not any(answer.withheld for answer in answers)
        unsafe = server.judges.unsafe([Exchange(answer.prompt, answer.text.strip()) for answer in answers])
        assert [answer.castor["unsafe"] for answer in answers] == unsafe
        assert any(unsafe)


def test_best_of_is_the_most_helpful_safe_answer(server: Server, prompts: list[str]) -> None:
    """Against all of its candidates: those of the same seeds, asked for without a guard."""
    n, some = Guard().n, prompts[:60]
    seeds = [100 * number for number in range(len(some))]
    best = [each.answers[0] for each in ask_all(server, some, seeds, castor={"guard": "best_of"})]
    again = [seed + i for seed in seeds for i in range(n)]
    candidates = [each.answers[0].text for each in ask_all(server, [p for p in some for _ in range(n)], again)]
    pairs = [Exchange(some[i // n], text.strip()) for i, text in enumerate(candidates)]
    unsafe, rewards = server.judges.unsafe(pairs), server.judges.scores("reward", pairs)
    found = 0
    for number, answer in enumerate(best):
        safe = [i for i in range(number * n, number * n + n) if not unsafe[i]]
        assert answer.withheld == (not safe)
        if safe:
            assert answer.text == candidates[max(safe, key=lambda i: rewards[i])]
        found += len(safe) > 1
    assert found  # there was a choice


def test_the_conversation_is_judged_as_a_whole(server: Server) -> None:
    turns = [("user", "bake ?"), ("assistant", "no"), ("user", "why not ?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    body = {"model": "ppo_lag", "messages": messages, "max_tokens": 8, "seed": 1, "castor": {"guard": "annotate"}}
    (choice,) = server.post(CHAT, body).json()["choices"]
    text = choice["message"]["content"].strip()
    (cost,) = server.judges.costs([Exchange("why not ?", text, (("bake ?", "no"),))])
    (alone,) = server.judges.costs([Exchange("why not ?", text)])
    assert choice["castor"]["cost"] == pytest.approx(cost, abs=ROUNDING)
    assert choice["castor"]["cost"] != pytest.approx(alone, abs=ROUNDING)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True), ("top_logprobs", 2), ("echo", True), ("prompt_logprobs", 1),
        ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "auto"), ("best_of", 3),
        ("response_format", {"type": "json_object"}), ("logit_bias", {"5": 100}), ("return_token_ids", True),
        ("include_reasoning", True), ("continue_final_message", True), ("chat_template", "{{ messages }}"),
        ("structured_outputs", {"regex": "a"}), ("documents", [{"text": "a"}]), ("reasoning_effort", "low"),
        ("stop_token_ids", [5]), ("skip_special_tokens", False), ("add_generation_prompt", False), ("n", 17),
        ("castor", {"guard": "none"}), ("castor", {"judge": 1}), ("stream_options", {"include_usage": True}),
    ],
)  # fmt: skip
def test_what_could_carry_text_past_the_guard_is_refused(server: Server, field: str, value: Any) -> None:
    options = {"castor": {"guard": "withhold"}, field: value}
    outcome = ask(server, "how ?", **options)
    assert outcome.status == 400, outcome
    assert not outcome.answers[0].pieces


def test_default_values_of_clients_are_no_offence(server: Server) -> None:
    harmless = {"logprobs": False, "tools": [], "logit_bias": None, "response_format": {"type": "text"}, "user": "u"}
    assert ask(server, "how ?", castor={"guard": "withhold"}, **harmless).status == 200


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
        [{"role": "user", "content": " "}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}],
        [{"role": "user", "content": "a", "tool_calls": []}],
        [{"role": "tool", "content": "a"}],
    ],
    ids=str,
)
def test_conversations_that_are_none(server: Server, messages: list[dict[str, Any]]) -> None:
    body = {"model": "ppo_lag", "messages": messages, "castor": {"guard": "withhold"}}
    answer = server.post(CHAT, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_usage_counts_all_that_was_sampled(server: Server) -> None:
    body = {"model": "ppo_lag", "messages": [{"role": "user", "content": "how ?"}], "max_tokens": 5, "n": 2}
    usage = server.post(CHAT, body | {"castor": {"guard": "best_of"}}).json()["usage"]
    assert 0 < usage["completion_tokens"] <= 2 * Guard().n * 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
