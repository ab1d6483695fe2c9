"""`castor serve` from start to end: real Ray Serve, real vLLM, the official client, and what is left afterwards."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI

from castor.config.demo_model import DemoModel
from castor.config.load import dump_config
from castor.config.pipeline import Config
from castor.config.signal import HTTPScorer
from castor.data.rows.schemas import Exchange
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.models.score import ScoreInfo, ScoreModel, save_score_model
from castor.models.tiny import make_demo_model
from castor.packing import pack_rows
from castor.scoring.http import RemoteScorer
from tests.numerics import TINY_MODELS, assert_close, tolerance

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 300, 20
TEXT = ["how do i bake a cake ?", "first mix flour and sugar , then bake it .", "i cannot help with that ."]
PROMPT, RESPONSE = "how do i bake a cake ?", "first mix flour and sugar ."
CONTEXT = 128
DRIVER = """
import sys
from castor.config.serve import Serve
from serve.app import serve_forever
serve_forever(Serve(run_dir=sys.argv[1], port=int(sys.argv[2]), max_num_seqs=8, kv_cache_mib=32,
                    score_batch_tokens=64), lambda endpoints: print('health:', endpoints.health_url, flush=True))
"""


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen
    url: str
    run: Path
    log: Path

    def score(self, body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/score", json=body, timeout=60)


def _make_run(run: Path) -> None:
    """As a run with template pku leaves it: the served models read their texts in that format without being told."""
    data = {"data": {"source": "synthetic"}}
    signals = {
        "help": {"role": "objective", "model": "stage:reward"},
        "harm": {"role": "constraint", "model": "stage:cost", "threshold": 0.0},
    }
    lag = {"steps": 1, "signals": signals, "multipliers": {}}
    values = {"template": "pku", "model": {}, "sft": data, "reward": data, "cost": data, "rlhf": {"ppo_lag": lag}}
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(Config.model_validate(values)))
    config = DemoModel(
        tokenizer="bpe", vocab_size=512, hidden_size=64, layers=2, heads=2, intermediate_size=64,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    make_demo_model(config, TEXT, seed=0, folder=run / "sft")
    make_demo_model(config, TEXT, seed=1, folder=run / "ppo_lag" / "policy")
    for info in (ScoreInfo("cost", std=0.5), ScoreInfo("reward", mean=0.3, std=2.0)):
        model = ScoreModel.from_backbone(str(run / "sft"), info, torch.float32)
        save_score_model(run / info.score_type, model.backbone, dict(model.state_dict()), info, str(run / "sft"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    run, log = folder / "demo", folder / "log"
    _make_run(run)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    env.pop("RAY_ADDRESS", None)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(run), str(port)], cwd=ROOT, env=env, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + START_S
        while "health: " not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")[-5000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-5000:]
            time.sleep(0.5)
        yield Server(process, f"http://127.0.0.1:{port}", run, log)
    finally:
        if process.poll() is None:  # a test before the last one failed
            _stop(process)


def _stop(process: subprocess.Popen) -> tuple[float, list[psutil.Process]]:
    """Interrupt the server; returns the seconds until it ended and the processes it left behind."""
    children = psutil.Process(process.pid).children(recursive=True)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    finally:
        seconds = time.monotonic() - begin
        left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        for child in left:
            child.kill()
        process.kill()
    return seconds, left


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def test_models_and_health(server: Server, client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "ppo_lag"
    assert httpx.get(f"{server.url}/-/healthz", timeout=60).status_code == 200
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


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


@pytest.mark.parametrize("path", [*ROUTES, "/v1/responses", "/v1/messages", "/tokenize", "/detokenize"])
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
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def _direct(server: Server, kind: str, items: Sequence[tuple[str, str] | Exchange]) -> list[float]:
    model = ScoreModel.load(server.run / kind, torch.float32).eval()
    template = PromptTemplate(load_tokenizer(str(server.run / kind)), "pku")
    scores = []
    for text in (Exchange(*item) for item in items):
        head = template.encode_prompt(text.prompt, text.history)
        tokens = np.array([*head, *template.encode_response(text.response)])
        with torch.inference_mode():
            rows = pack_rows(tokens, np.array([len(tokens)]), len(tokens))
            scores.append(float(model(rows, torch.tensor([len(tokens) - 1]))))
    return scores


def test_scores_equal_the_score_models(server: Server) -> None:
    items = [(PROMPT, RESPONSE), (PROMPT, TEXT[2]), ("bake", "no"), ("a " * 20, "b " * 20)] * 3
    body = {"items": [{"prompt": prompt, "response": response} for prompt, response in items]}
    answer = server.score(body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "demo/cost"
    scores = answer.json()["scores"]
    costs, rewards = _direct(server, "cost", items), _direct(server, "reward", items)
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
    (expected,) = _direct(server, "cost", [Exchange(PROMPT, RESPONSE, (("bake ?", "no"),))])
    assert score["cost"] == pytest.approx(expected, abs=1e-5)
    assert score["cost"] != pytest.approx(_direct(server, "cost", [(PROMPT, RESPONSE)])[0], abs=1e-5)


def test_it_is_a_remote_scorer_of_a_run(server: Server) -> None:
    items = [(PROMPT, RESPONSE), (PROMPT, ""), ("bake", "no")]
    for field in ("cost", "reward"):
        remote = RemoteScorer(HTTPScorer(url=f"{server.url}/v1/score", batch_size=2), field)
        scores = remote([prompt for prompt, _ in items], [response for _, response in items])
        assert_close(scores, _direct(server, field, items), TINY_MODELS)


def test_requests_at_the_same_time_keep_their_own_scores(server: Server) -> None:
    bodies = [{"prompt": PROMPT, "response": "mix " * (n + 1)} for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.score, bodies))
    costs = [answer.json()["scores"][0]["cost"] for answer in answers]
    expected = _direct(server, "cost", [(body["prompt"], body["response"]) for body in bodies])
    assert_close(costs, expected, TINY_MODELS)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": PROMPT}, 422, "give either prompt and response, or items"),
        ({"prompt": " ", "response": PROMPT}, 422, "must not be blank"),
        ({"prompt": PROMPT, "response": 7}, 422, "valid string"),
        ({"items": []}, 422, "at least 1 item"),
        ([], 422, "valid dictionary"),
        ({"prompt": PROMPT, "response": "mix flour " * CONTEXT}, 400, f"the cost model's context of {CONTEXT}"),
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
        f"{server.url}/v1/score", content=content, headers={"content-type": "application/json"}, timeout=60
    )
    assert 400 <= answer.status_code < 500, answer.text


def test_interrupt_ends_everything(server: Server) -> None:
    """Last: the server is gone afterwards."""
    seconds, left = _stop(server.process)
    assert left == []
    assert seconds < STOP_S
    assert server.process.returncode == 0, server.log.read_text(errors="replace")[-5000:]
