"""The OpenAI routes of `castor serve` without a guard: vLLM's answers, and everybody's mistakes."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI

from castor.config.judge import HTTPScorer
from castor.data.rows.schemas import Exchange
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.scoring.http import RemoteScorer
from tests.integration.serve.conftest import CONTEXT, TEXT, Server
from tests.numerics import TINY_MODELS, assert_close, tolerance

PROMPT, RESPONSE = TEXT[0], "first mix flour and sugar ."


def test_models_and_health(server: Server, client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "ppo_lag"
    assert server.get("/healthz").json() == {"status": "ok"}
    assert server.get("/readyz").json() == {"ready": {"ppo_lag": True, "judges": True}}


def test_completion_with_logprobs_of_the_policy_itself(server: Server, client: OpenAI) -> None:
    from transformers import AutoModelForCausalLM

    answer = client.completions.create(
        model="ppo_lag", prompt=PROMPT, max_tokens=6, temperature=0, logprobs=1, extra_body={"ignore_eos": True}
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    policy = server.run / "ppo_lag" / "policy"
    ids = load_tokenizer(str(policy))(PROMPT, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    expected = []
    with torch.inference_mode():
        for _ in range(6):
            logprobs = torch.log_softmax(model(ids).logits[0, -1], -1)
            expected.append(float(logprobs.max()))
            ids = torch.cat([ids, logprobs.argmax()[None, None]], 1)
    assert_close(choice.logprobs.token_logprobs, expected, TINY_MODELS)


def test_chat_and_streaming_chat_agree(client: OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "ppo_lag",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 8,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**request)
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 8
    chunks = list(client.chat.completions.create(**request, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_chat_reads_the_prompt_as_in_training(server: Server, client: OpenAI) -> None:
    template = PromptTemplate(load_tokenizer(str(server.run / "ppo_lag" / "policy")), "pku")
    answer = client.chat.completions.create(
        model="ppo_lag", messages=[{"role": "user", "content": PROMPT}], max_tokens=1
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(template.encode_prompt(PROMPT))


def test_a_route_of_vllms_that_was_asked_for(server: Server) -> None:
    answer = server.post("/tokenize", {"model": "ppo_lag", "prompt": PROMPT})
    assert answer.status_code == 200, answer.text
    ids = load_tokenizer(str(server.run / "ppo_lag" / "policy"))(PROMPT)["input_ids"]
    assert answer.json()["tokens"] == ids
    assert server.post("/v1/responses", {"model": "ppo_lag", "input": PROMPT}).status_code == 404


def test_bad_requests_to_the_policy(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.completions.create(model="another", prompt=PROMPT)
    with pytest.raises(BadRequestError):
        client.completions.create(model="ppo_lag", prompt=PROMPT, max_tokens=CONTEXT + 1)


CHAT = [{"role": "user", "content": PROMPT}]
ROUTES = {"/v1/completions": {"prompt": PROMPT}, "/v1/chat/completions": {"messages": CHAT}}
HALF = "\ud800"  # of a surrogate pair


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "wrong",
    [
        *({"structured_outputs": value} for value in (0, True, 1.5, "x", HALF, [], [0], [None])),
        *({"structured_outputs": value} for value in ({"json": HALF}, {"regex": 0}, {"json": 0, "regex": "a"})),
        *({"stop": value} for value in (HALF, [HALF], ["a", f"b{HALF}"], 0, {}, [[]])),
        *({name: HALF} for name in ("prompt", "messages", "model", "request_id", "user", "cache_salt")),
        *({name: [{"role": "user", "content": [{"type": "text", "text": HALF}]}]} for name in ("messages", "tools")),
        *({"kv_transfer_params": value} for value in ({HALF: 1}, {"a": {"b": [HALF]}})),
        *({"top_k": value} for value in (10**30, -(10**30), "x", [1])),
        *({"logit_bias": value} for value in ({HALF: 1}, {"x": 1}, {"0": "x"}, 0)),
        *({"temperature": value} for value in (float("nan"), float("inf"), "hot", -1)),
        *({"seed": value} for value in (2**64, "x", 1.5)),
        *({"max_tokens": value} for value in ("x", -1, CONTEXT + 1)),
        *({"response_format": value} for value in (0, "x", {"type": "x"}, {"type": "json_schema", "json_schema": 0})),
    ],
    ids=ascii,
)
def test_malformed_requests_are_the_senders_fault(server: Server, path: str, wrong: dict[str, Any]) -> None:
    body = json.dumps({"model": "ppo_lag", "max_tokens": 2, **ROUTES[path], **wrong}).encode()
    _expect_refusal(server, path, body)


@pytest.mark.parametrize("path", [*ROUTES, "/v1/score", "/v1/moderations", "/v1/votes", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"[]", b"0", b"null", b'"x"', b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 100_000,
        b'{"a":' * 500 + b"1" + b"}" * 500, b'{"stop": "\\ud800"}', b'{"a": NaN}', b'{"a": 1' + b"0" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_bodies_that_no_route_can_read(server: Server, path: str, body: bytes) -> None:
    _expect_refusal(server, path, body)


def _expect_refusal(server: Server, path: str, body: bytes) -> None:
    """400 in OpenAI's error shape, and a policy that still answers."""
    headers = server.headers | {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert server.get("/readyz").status_code == 200


def test_scores_equal_the_score_models(server: Server) -> None:
    items = [(PROMPT, RESPONSE), (PROMPT, TEXT[2]), ("bake", "no"), ("a " * 20, "b " * 20)] * 3
    body = {"items": [{"prompt": prompt, "response": response} for prompt, response in items]}
    answer = server.score(body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "demo/cost"
    scores = answer.json()["scores"]
    costs, rewards = server.judges.scores("cost", items), server.judges.scores("reward", items)
    assert_close([score["cost"] for score in scores], costs, TINY_MODELS)
    assert_close([score["reward"] for score in scores], rewards, TINY_MODELS)
    assert [score["unsafe"] for score in scores] == [cost > 0 for cost in costs]
    one = server.score({"prompt": PROMPT, "response": RESPONSE}).json()["scores"]
    assert one[0] == pytest.approx(scores[0], abs=tolerance(costs + rewards, TINY_MODELS))


def test_a_conversation_is_scored_with_its_earlier_turns(server: Server) -> None:
    turns = [("user", "bake ?"), ("assistant", "no"), ("user", PROMPT), ("assistant", RESPONSE)]
    answer = server.score({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert answer.status_code == 200, answer.text
    (score,) = answer.json()["scores"]
    (expected,) = server.judges.scores("cost", [Exchange(PROMPT, RESPONSE, (("bake ?", "no"),))])
    assert score["cost"] == pytest.approx(expected, abs=1e-5)
    assert score["cost"] != pytest.approx(server.judges.scores("cost", [(PROMPT, RESPONSE)])[0], abs=1e-5)


def test_it_is_a_remote_scorer_of_a_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_TOKEN", f"Bearer {server.key}")
    headers = {"Authorization": "SCORER_TOKEN"}
    items = [(PROMPT, RESPONSE), (PROMPT, ""), ("bake", "no")]
    for field in ("cost", "reward"):
        remote = RemoteScorer(HTTPScorer(url=f"{server.url}/v1/score", batch_size=2, headers_env=headers), field)
        scores = remote([prompt for prompt, _ in items], [response for _, response in items])
        assert_close(scores, server.judges.scores(field, items), TINY_MODELS)


def test_requests_at_the_same_time_keep_their_own_scores(server: Server) -> None:
    bodies = [{"prompt": PROMPT, "response": "mix " * (n + 1)} for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.score, bodies))
    costs = [answer.json()["scores"][0]["cost"] for answer in answers]
    expected = server.judges.scores("cost", [(body["prompt"], body["response"]) for body in bodies])
    assert_close(costs, expected, TINY_MODELS)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": PROMPT}, 400, "give either prompt and response, or items"),
        ({"prompt": " ", "response": PROMPT}, 400, "must not be blank"),
        ({"prompt": PROMPT, "response": 7}, 400, "valid string"),
        ({"items": []}, 400, "at least 1 item"),
        ([], 400, "valid dictionary"),
        ({"prompt": PROMPT, "response": "mix flour " * CONTEXT}, 400, "longer than the judges read"),
    ],
)
def test_bad_requests_to_the_scores(server: Server, body: Any, status: int, message: str) -> None:
    answer = server.score(body)
    assert answer.status_code == status, answer.text
    assert message in answer.text
    assert "scores" not in answer.json()


@pytest.mark.parametrize(
    "content", [b"not json", b'{"prompt": "\xff", "response": "a"}', b'{"prompt":"a","response":"\\ud800"}']
)
def test_bodies_that_are_no_text(server: Server, content: bytes) -> None:
    answer = httpx.post(
        f"{server.url}/v1/score",
        content=content,
        headers=server.headers | {"content-type": "application/json"},
        timeout=60,
    )
    assert 400 <= answer.status_code < 500, answer.text
