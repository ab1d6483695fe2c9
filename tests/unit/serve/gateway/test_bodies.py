"""What is read of a request, what is refused while a guard is on, and that nothing else ever reaches the policy."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.config.guard import GuardMode
from castor.data.rows.schemas import Exchange
from serve.gateway.bodies import (
    CHAT,
    COMPLETIONS,
    HARMLESS,
    LONGEST_TEXT,
    Ask,
    Route,
    chosen_mode,
    encoded,
    head_of,
    read,
)
from serve.gateway.failures import BadRequest

MODES: tuple[GuardMode, ...] = ("off", "annotate", "withhold", "best_of", "regenerate")
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
CHATS: dict[str, Any] = {"model": "m", "messages": [USER]}
TEXTS: dict[str, Any] = {"model": "m", "prompt": "p"}
QUESTIONS: dict[Route, dict[str, Any]] = {CHAT: CHATS, COMPLETIONS: TEXTS}
SENT = {  # all that a guarded policy may ever be sent
    "model", "messages", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "stop", "seed",
}  # fmt: skip
SEED = st.integers(-(2**63), 2**63 - 1)


def ask(
    route: Route = CHAT, mode: GuardMode = "withhold", longest: int | None = 100, most: int = 4, **more: Any
) -> Ask:
    return read(route, QUESTIONS[route] | more, mode, longest, most)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True), ("logprobs", 0), ("logprobs", 1), ("top_logprobs", 0), ("echo", True), ("echo", 0),
        ("prompt_logprobs", 0), ("tools", [{}]), ("tools", {}), ("tool_choice", "auto"), ("functions", [{}]),
        ("best_of", 2), ("best_of", True), ("best_of", 1.0), ("suffix", "s"), ("logit_bias", {"5": 100}),
        ("logit_bias", []), ("response_format", {"type": "json_object"}), ("response_format", {}), ("store", True),
        ("store", 0), ("metadata", {"a": "b"}), ("modalities", ["audio"]), ("modalities", []), ("service_tier", "flex"),
    ],
)  # fmt: skip
def test_values_that_ask_for_something_are_refused_by_name(field: str, value: Any) -> None:
    for route in QUESTIONS:
        with pytest.raises(BadRequest, match=f"{field} is not offered while the guard is on") as refused:
            ask(route, **{field: value})
        assert refused.value.param == field


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in HARMLESS.items() for value in values])
def test_values_that_ask_for_nothing_are_dropped(field: str, value: Any) -> None:
    for route in QUESTIONS:
        assert ask(route, **{field: value}).body == ask(route).body


@pytest.mark.parametrize(
    "field",
    [
        "stop_token_ids", "return_token_ids", "skip_special_tokens", "chat_template", "chat_template_kwargs",
        "continue_final_message", "add_generation_prompt", "documents", "include_reasoning", "structured_outputs",
        "guided_json", "vllm_xargs", "kv_transfer_params", "mm_processor_kwargs", "include_stop_str_in_output",
        "return_tokens_as_token_ids", "prompt_embeds", "truncate_prompt_tokens", "ignore_eos", "min_tokens",
        "use_beam_search", "parallel_tool_calls", "audio", "prediction", "request_id", "cache_salt", "priority", "",
    ],
)  # fmt: skip
def test_every_other_field_is_refused(field: str) -> None:
    for route in QUESTIONS:
        for value in (None, False, 1):
            with pytest.raises(BadRequest, match="unknown, or not offered while the guard is on") as refused:
                ask(route, **{field: value})
            assert refused.value.param == (field or None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 1), ("model", "x" * 257), ("max_tokens", 0), ("max_tokens", 2.0), ("max_tokens", "2"),
        ("max_tokens", True), ("temperature", -0.1), ("temperature", 2.1), ("temperature", float("nan")),
        ("temperature", "1"), ("top_p", 0.0), ("top_p", 1.1), ("top_p", float("nan")), ("top_k", -2), ("top_k", 2**31),
        ("min_p", -0.1), ("presence_penalty", 3), ("frequency_penalty", -3), ("repetition_penalty", 0),
        ("repetition_penalty", float("nan")), ("n", 0), ("n", 5), ("n", 1.0), ("n", True), ("stop", 1), ("stop", [1]),
        ("stop", "x" * (LONGEST_TEXT + 1)), ("seed", 2**63), ("seed", -(2**63) - 1), ("seed", 1.0), ("stream", 1),
        ("stream", "true"), ("stream_options", {"include_usage": True}), ("user", "x" * 257), ("user", 1),
        ("castor", 1), ("castor", {"guard": "none"}), ("castor", {"guard": ["off"]}), ("castor", {"judge": 1}),
        ("castor", {"priority": "first"}),
    ],
)  # fmt: skip
def test_values_beyond_their_range_are_refused(field: str, value: Any) -> None:
    for route in QUESTIONS:
        with pytest.raises(BadRequest) as refused:
            ask(route, **{field: value})
        assert field in (refused.value.param or refused.value.message)


def test_no_text_of_the_user_is_in_an_error() -> None:
    for body in (CHATS | {"messages": [{"role": "user", "content": 7, "secret": "s"}]}, CHATS | {"stop": {"a": "my"}}):
        with pytest.raises(BadRequest) as refused:
            read(CHAT, body, "withhold", 100, 4)
        assert "'s'" not in refused.value.message
        assert "my" not in refused.value.message


@pytest.mark.parametrize(
    "messages",
    [
        [], [ASSISTANT], [USER, USER], [USER, ASSISTANT], [USER, SYSTEM], [SYSTEM], [USER, SYSTEM, ASSISTANT, USER],
        [SYSTEM, ASSISTANT, USER], [{"role": "user", "content": " \n"}], [{"role": "user", "content": None}],
        [{"role": "user", "content": []}], [{"role": "user"}], [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "a", "more": 1}]}],
        [USER | {"tool_calls": []}], [USER | {"name": "n" * 65}], [USER, ASSISTANT] * 512 + [USER], "u", {"0": USER},
    ],
    ids=lambda each: str(each)[:60],
)  # fmt: skip
def test_conversations_that_are_none(messages: Any) -> None:
    with pytest.raises(BadRequest):
        ask(messages=messages)


def test_a_conversation_is_sent_as_it_is_judged() -> None:
    """System messages are judged as a part of the question, of which training knows no other place."""
    parts = [{"type": "text", "text": "w"}, {"type": "text", "text": "hy"}]
    messages = [
        SYSTEM, {"role": "developer", "content": "d"}, USER | {"name": "ann"}, ASSISTANT,
        {"role": "user", "content": parts},
    ]  # fmt: skip
    found = ask(messages=messages)
    assert found.exchange == Exchange("why", "", (("s\n\nd\n\nu", "a"),))
    told = [(each["role"], each["content"]) for each in found.body["messages"]]
    assert told == [("system", "s"), ("system", "d"), ("user", "u"), ("assistant", "a"), ("user", "why")]
    assert all(set(each) == {"role", "content"} for each in found.body["messages"])
    assert ask(messages=[SYSTEM, USER]).exchange == Exchange("s\n\nu", "")
    assert ask(COMPLETIONS).exchange == Exchange("p", "")


@pytest.mark.parametrize("prompt", ["", " \n", None, 1, ["p"], [1, 2], [["p"]]])
def test_a_prompt_is_one_text(prompt: Any) -> None:
    with pytest.raises(BadRequest):
        ask(COMPLETIONS, prompt=prompt)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, 100), ({"max_tokens": None}, 100), ({"max_tokens": 99}, 99), ({"max_tokens": 101}, 100),
        ({"max_tokens": 2**62}, 100), ({"max_completion_tokens": 7}, 7), ({"max_completion_tokens": 101}, 100),
        ({"max_completion_tokens": 8, "max_tokens": 200}, 8), ({"max_completion_tokens": 200, "max_tokens": 8}, 100),
        ({"max_completion_tokens": None, "max_tokens": 8}, 8),
    ],
)  # fmt: skip
def test_answers_are_no_longer_than_allowed(given: dict[str, Any], sent: int | None) -> None:
    body = ask(**given).body
    assert body.get("max_tokens") == sent
    assert "max_completion_tokens" not in body
    if "max_completion_tokens" not in given:
        assert ask(COMPLETIONS, **given).body.get("max_tokens") == sent


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"max_tokens": 100}), ({"max_tokens": 7}, {"max_tokens": 7}), ({"max_tokens": 200}, {"max_tokens": 100}),
        ({"max_completion_tokens": 200}, {"max_completion_tokens": 100}),
    ],
)  # fmt: skip
def test_without_a_guard_answers_are_no_longer_either(given: dict[str, Any], sent: dict[str, int]) -> None:
    body = read(COMPLETIONS, {"model": "m", "prompt": ["p", "q"]} | given, "off", 100, 2).body
    assert body == {"model": "m", "prompt": ["p", "q"]} | sent
    assert read(COMPLETIONS, {"model": "m", "prompt": "p"} | given, "off", None, 2).body.keys() == {
        "model", "prompt", *given,
    }  # fmt: skip
    for wrong in ({"n": 2}, {"prompt": ["p"] * 3}, {"max_tokens": "7"}, {"max_tokens": 7.0}):
        with pytest.raises(BadRequest):
            read(COMPLETIONS, {"model": "m", "prompt": ["p", "q"]} | wrong, "off", 100, 2)


def test_the_request_is_read_in_full() -> None:
    more = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 3,
        "user": "u",
        "temperature": 1,
        "stop": "x",
    }
    found = ask(**more, castor={"guard": "withhold", "priority": "batch"})
    assert (found.route, found.model, found.mode, found.stream, found.priority) == (
        CHAT,
        "m",
        "withhold",
        True,
        "batch",
    )
    assert (found.include_usage, found.n) == (True, 3)
    assert found.body == {"model": "m", "messages": [USER], "temperature": 1.0, "stop": "x", "max_tokens": 100}
    plain = ask()
    assert (plain.stream, plain.include_usage, plain.n, plain.priority) == (False, False, 1, "interactive")


@given(SEED, st.sets(st.integers(0, 64 * 64), min_size=2, max_size=20))
def test_answers_have_seeds_of_their_own_within_64_bits(seed: int, numbers: set[int]) -> None:
    found = ask(seed=seed)
    seeds = [found.sample(number)["seed"] for number in numbers]
    assert len(set(seeds)) == len(numbers)
    assert all(-(2**63) <= each < 2**63 for each in seeds)
    assert found.sample(0)["seed"] == seed


def test_an_answer_without_a_seed_has_none() -> None:
    found = ask()
    assert found.sample(3) == found.body
    assert found.sample(3, max_tokens=5, stop=None) == found.body | {"max_tokens": 5}


def test_a_policy_goes_on_behind_what_it_has_said() -> None:
    chat, text = ask(messages=[USER, ASSISTANT, USER]), ask(COMPLETIONS)
    assert chat.continued("") == text.continued("") == {}
    changes = chat.continued("so ")
    assert changes.pop("messages") == [*chat.body["messages"], {"role": "assistant", "content": "so "}]
    assert changes == {"continue_final_message": True, "add_generation_prompt": False}
    assert text.continued(" so") == {"prompt": "p so"}


def test_an_instruction_is_sent_and_not_judged() -> None:
    chat, text = ask(messages=[SYSTEM, USER, ASSISTANT, USER]), ask(COMPLETIONS)
    told = chat.instructed("be kind")
    assert told.body["messages"] == [*chat.body["messages"][:-1], {"role": "user", "content": "u\n\nbe kind"}]
    assert told.exchange == chat.exchange
    assert chat.body["messages"][-1] == USER  # what is asked next is asked of the question, not of the last attempt
    assert text.instructed("be kind").body["prompt"] == "p\nbe kind\n"
    assert text.instructed("be kind").continued("so")["prompt"] == "p\nbe kind\nso"


STRICTER = {  # configured: what a request may ask for
    "off": MODES,
    "annotate": ("annotate", "withhold", "best_of", "regenerate"),
    "withhold": ("withhold", "best_of", "regenerate"),
    "best_of": ("withhold", "best_of", "regenerate"),
    "regenerate": ("withhold", "best_of", "regenerate"),
}


@pytest.mark.parametrize("configured", MODES)
@pytest.mark.parametrize("wanted", MODES)
def test_a_request_can_only_be_stricter(configured: GuardMode, wanted: GuardMode) -> None:
    assert chosen_mode(configured, None) == configured
    if wanted in STRICTER[configured]:
        assert chosen_mode(configured, wanted) == wanted
    else:
        with pytest.raises(BadRequest, match=f"the guard of this model is {configured}") as refused:
            chosen_mode(configured, wanted)
        assert refused.value.param == "castor.guard"


def test_the_head_of_a_body() -> None:
    assert head_of(CHATS) == head_of({"model": "m", "castor": None}) == ("m", None)
    assert head_of({"model": "m", "castor": {"guard": "annotate"}}) == ("m", "annotate")
    for values, param in (
        ([], None), (None, None), ("m", None), ({}, "model"), ({"model": None}, "model"), ({"model": ["m"]}, "model"),
        ({"model": "m", "castor": 1}, "castor"), ({"model": "m", "castor": {"guard": 1}}, "castor.guard"),
        ({"model": "m", "castor": {"guard": "OFF"}}, "castor.guard"), ({"model": "m", "castor": {"a": 1}}, "castor.a"),
    ):  # fmt: skip
        with pytest.raises(BadRequest) as refused:
            head_of(values)
        assert refused.value.param == param


def test_without_a_guard_the_body_is_the_policys_to_judge() -> None:
    more = {"logprobs": True, "tools": [{}], "stream": True, "max_tokens": 7, "anything": [1]}
    found = ask(mode="off", **more, castor={"priority": "batch"})
    assert found.body == CHATS | more
    assert (found.stream, found.priority) == (True, "batch")
    assert ask(mode="off", n=4).body["n"] == 4


@pytest.mark.parametrize("n", [5, 2**62, 5.0, 1.0, "5", "1", True, [5]])
def test_without_a_guard_answers_are_no_more_than_allowed(n: Any) -> None:
    """vLLM's app would read "5" and 5.0 as 5."""
    with pytest.raises(BadRequest) as refused:
        ask(mode="off", n=n)
    assert refused.value.param == "n"


TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CONTENT = TEXT | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=2) | JSON
ROLE = st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | JSON
MESSAGE = st.fixed_dictionaries({"role": ROLE, "content": CONTENT}, optional={"name": TEXT | JSON})
PROMPT = TEXT.map(lambda text: f"p{text}")
TURNS = st.lists(st.tuples(PROMPT, TEXT), max_size=2).map(
    lambda turns: [
        {"role": role, "content": text}
        for turn in [*turns, ("q",)]
        for role, text in zip(("user", "assistant"), turn, strict=False)
    ]
)
FIELDS: dict[str, Any] = {
    "model": TEXT, "messages": TURNS | st.lists(MESSAGE, max_size=3), "prompt": TEXT, "max_tokens": st.integers(1, 200),
    "max_completion_tokens": st.integers(1, 200), "temperature": st.floats(0, 2), "top_p": st.floats(0.1, 1), "n": SEED,
    "top_k": st.integers(-1, 2**40), "min_p": st.floats(0, 1), "stop": TEXT | st.lists(TEXT, max_size=2), "seed": SEED,
    "user": TEXT,
    "presence_penalty": st.floats(), "frequency_penalty": st.floats(), "repetition_penalty": st.floats(0.1, 10),
    "stream": st.booleans(), "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "castor": st.fixed_dictionaries(
        {}, optional={"guard": st.sampled_from(MODES), "priority": st.sampled_from(["interactive", "batch"])}
    ),
    **{name: st.sampled_from(values) for name, values in HARMLESS.items()},
}  # fmt: skip
ANY = {name: strategy | JSON for name, strategy in FIELDS.items()}
BODY = st.fixed_dictionaries({}, optional=ANY) | st.dictionaries(TEXT | st.sampled_from([*FIELDS]), JSON, max_size=4)
FITTING = {
    name: strategy for name, strategy in FIELDS.items() if name not in ("model", "messages", "prompt", "stream_options")
} | {"n": st.integers(1, 4), "presence_penalty": st.floats(-2, 2), "frequency_penalty": st.floats(-2, 2)}
GOOD: dict[Route, Any] = {
    CHAT: st.fixed_dictionaries({"model": TEXT, "messages": TURNS}, optional=FITTING),
    COMPLETIONS: st.fixed_dictionaries({"model": TEXT, "prompt": PROMPT}, optional=FITTING),
}
ROUTE = st.sampled_from([CHAT, COMPLETIONS])


@given(ROUTE.flatmap(lambda route: st.tuples(st.just(route), BODY | GOOD[route])), st.sampled_from(MODES))
def test_any_body_is_read_or_refused(routed: tuple[Route, dict[str, Any]], mode: GuardMode) -> None:
    route, values = routed
    before = json.dumps(values)
    try:
        found = read(route, values, mode, 100, 4)
    except BadRequest:
        return
    finally:
        assert json.dumps(values) == before
    if mode == "off":
        bounded = {"max_tokens", "max_completion_tokens"}
        assert {key: value for key, value in found.body.items() if key not in bounded} == {
            key: value for key, value in values.items() if key not in {"castor"} | bounded
        }
        longest = [found.body[key] for key in bounded if found.body.get(key) is not None]
        assert longest
        assert min(longest) <= 100
        return
    assert found.mode == mode
    assert set(found.body) <= SENT
    assert 1 <= found.n <= 4
    assert found.body.get("max_tokens", 1) in range(1, 101)
    assert None not in found.body.values()
    json.loads(encoded(found.body), parse_constant=pytest.fail)
    for each in found.body.get("messages", []):
        assert set(each) == {"role", "content"}
        assert isinstance(each["content"], str)
    judged = " ".join([found.exchange.prompt, *(text for turn in found.exchange.history for text in turn)])
    sent = [each["content"] for each in found.body["messages"]] if route == CHAT else [found.body["prompt"]]
    assert all(text in judged for text in sent)  # nothing is asked that is not judged
    assert found.exchange.response == ""
