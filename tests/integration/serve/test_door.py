"""Who may ask and how much, what a body may hold, and that neither a key nor a prompt is found in any log."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from serve.gateway.keys import KeyStore, NewKey
from serve.gateway.scope import Scope
from tests.integration.serve.conftest import CONTEXT, TEXT, Server
from tests.integration.serve.load import CHAT, COMPLETIONS

MALFORMED = 2000
SEEN_S = 60  # until a running gateway has read a changed file; it looks once a second
BODY: dict[str, Any] = {"model": "ppo_lag", "messages": [{"role": "user", "content": TEXT[0]}], "max_tokens": 2}


def _post(server: Server, token: str, path: str = CHAT, body: Any = BODY) -> httpx.Response:
    return httpx.post(server.url + path, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def _made(server: Server, **how: Any) -> NewKey:
    """A key that the gateway knows by now."""
    made = KeyStore(server.keys).create("somebody", **how)
    _until(server, made.token, lambda answer: answer.status_code != 401)
    return made


def _until(server: Server, token: str, condition: Any) -> httpx.Response:
    deadline = time.monotonic() + SEEN_S
    while not condition(answer := _post(server, token)):
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer


def test_without_a_key_nothing_but_the_page_and_the_pulse_is_to_be_had(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json", timeout=60).json()["paths"]
    assert {CHAT, COMPLETIONS, "/v1/moderations", "/v1/score", "/v1/votes", "/v1/models"} <= set(paths)
    for path, methods in paths.items():
        for method in methods:
            answer = httpx.request(method, server.url + path, json={}, timeout=60)
            assert answer.status_code == (200 if path in ("/healthz", "/readyz") else 401), path
    assert httpx.get(server.url, timeout=60).status_code == 200


def test_scopes_models_and_revocation(server: Server) -> None:
    judge = _made(server, scopes=frozenset({Scope.JUDGE}))
    assert _post(server, judge.token).status_code == 403
    assert _post(server, judge.token, "/v1/score", {"prompt": "a", "response": "b"}).status_code == 200
    other = _made(server, models=("another",))
    assert _post(server, other.token).json()["error"]["code"] == "model_not_found"
    once = _made(server)
    assert _post(server, once.token).status_code == 200
    KeyStore(server.keys).revoke(once.key.id)
    _until(server, once.token, lambda answer: answer.status_code == 401)
    soon = _made(server, expires=datetime.now(UTC) + timedelta(seconds=5))
    assert _post(server, soon.token).status_code == 200
    assert "expired" in _until(server, soon.token, lambda answer: answer.status_code == 401).text


def test_rates_and_concurrency(server: Server) -> None:
    slow = _made(server, requests_per_minute=3)
    answers = [_post(server, slow.token) for _ in range(5)]
    assert [answer.status_code for answer in answers][-1] == 429
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    single = _made(server, concurrency=1)
    long = BODY | {"max_tokens": 150, "ignore_eos": True, "n": 8}
    with ThreadPoolExecutor(4) as pool:
        found = [job.result() for job in [pool.submit(_post, server, single.token, CHAT, long) for _ in range(4)]]
    assert {answer.status_code for answer in found} == {200, 429}


def test_the_times_of_wrong_keys_tell_nothing(server: Server) -> None:
    """A wrong secret of a key that exists, and a key that does not: medians of alternating tries are alike."""
    id = server.key.split("-")[1]
    rng, seconds = random.Random(0), {"wrong": list[float](), "unknown": list[float]()}
    for _ in range(20):
        secret = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=43))
        for kind, who in (("wrong", id), ("unknown", f"{rng.randrange(16**8):08x}")):
            begun = time.perf_counter()
            assert _post(server, f"castor-{who}-{secret}").status_code == 401
            seconds[kind].append(time.perf_counter() - begun)
    wrong, unknown = (sorted(values)[10] for values in seconds.values())
    assert 0.5 < wrong / unknown < 2  # a scrypt is most of either, and would be missing in one


def test_bodies_that_are_too_long_or_do_not_come(server: Server) -> None:
    answer = _post(server, server.key, body=BODY | {"user": "x" * (2 << 20)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    def endless() -> Any:
        for _ in range(100 * 16):
            yield b" " * (1 << 16)

    try:
        headers = server.headers | {"content-type": "application/json"}
        chunked = httpx.post(server.url + CHAT, content=endless(), headers=headers, timeout=60)
        assert chunked.status_code == 413
    except httpx.WriteError:
        pass  # refused before all of it was sent
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as slow:
        slow.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert server.get("/healthz").status_code == 200
    many = {f"x-{number}": "y" for number in range(500)}
    crowded = httpx.get(f"{server.url}/v1/models", headers=server.headers | many, timeout=60)
    assert crowded.status_code in (400, 431)
    assert server.get("/readyz").status_code == 200


WRONG: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, 1e308, "", " ", "x", "ppo_lag", [], [None], [[]], {}, {"a": None}, "\ud800",
    "\x00", "é" * 1000, [{"role": "user"}], [{"role": "user", "content": "a"}] * 3, {"type": "json_object"},
    ["a"] * 100,
]  # fmt: skip
FIELDS = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n",
    "stop", "seed", "stream", "stream_options", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs",
    "tools", "tool_choice", "response_format", "user", "castor", "echo", "suffix", "best_of", "unknown",
]  # fmt: skip


def test_thousands_of_malformed_requests(server: Server) -> None:
    """Each with one to three fields of a wrong kind, with and without a guard, streamed or not: never a 5xx."""
    rng, mine = random.Random(0), threading.local()
    gateway = server.replica("gateway")

    def one(number: int) -> tuple[int, bytes, str]:
        route = rng.choice([CHAT, COMPLETIONS])
        body: dict[str, Any] = {"model": "ppo_lag", "max_tokens": 1, "stream": number % 2 == 0}
        body |= {"messages": [{"role": "user", "content": "a"}]} if route == CHAT else {"prompt": "a"}
        if rng.random() < 0.7:
            body["castor"] = {"guard": rng.choice(["withhold", "best_of", "regenerate", "annotate"])}
        body |= {name: rng.choice(WRONG) for name in rng.sample(FIELDS, rng.randint(1, 3))}
        sent = json.dumps(body).encode()
        headers = server.headers | {"content-type": "application/json"}
        answer = mine.connection.post(server.url + route, content=sent, headers=headers)
        return answer.status_code, sent, answer.text

    def connect() -> None:  # a client of two threads may close a connection for one that the other reads from
        mine.connection = httpx.Client(timeout=60)

    def some(count: int) -> list[tuple[int, bytes, str]]:
        with ThreadPoolExecutor(8, initializer=connect) as pool:
            return list(pool.map(one, range(count)))

    found = some(MALFORMED // 4)
    before = gateway.memory_info().rss
    found += some(MALFORMED - MALFORMED // 4)
    assert [each for each in found if each[0] >= 500] == []
    refused = [text for status, _, text in found if status != 200]
    assert len(refused) > MALFORMED / 2
    assert all(json.loads(text)["error"]["message"] for text in refused)
    assert gateway.memory_info().rss < before + (32 << 20)
    assert psutil.pid_exists(gateway.pid)
    assert server.get("/readyz").status_code == 200


def test_schemathesis_finds_no_server_error(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=server.headers)
    bounded = settings(
        max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        derandomize=True, database=None,
    )  # fmt: skip
    tried = Counter[str]()

    def check(operation: Any) -> None:
        @given(case=operation.as_strategy())
        @bounded
        def answers(case: Any) -> None:
            tried[operation.path] += 1
            answer = case.call(headers=server.headers)
            assert answer.status_code < 500, (operation.path, answer.text)

        answers()

    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path not in ("/readyz", "/metrics"):
            check(operation)
    assert all(tried[path] >= 20 for path in (CHAT, COMPLETIONS, "/v1/moderations", "/v1/score", "/v1/votes")), tried


def test_no_log_holds_a_key_or_a_prompt(server: Server) -> None:
    planted, secret = "the planted walrus sings", server.key.split("-", 2)[2]
    for stream in (False, True):
        body = BODY | {"messages": [{"role": "user", "content": planted}], "stream": stream, "max_tokens": 24}
        for guard in ("withhold", "regenerate", "annotate"):
            assert _post(server, server.key, body=body | {"castor": {"guard": guard}}).status_code == 200
        assert _post(server, server.key, body=body | {"temperature": planted}).status_code == 400
        long = {"prompt": planted, "response": "and on " * CONTEXT}
        assert _post(server, server.key, "/v1/score", long).status_code == 400
    audit = server.run / "logs" / "audit.jsonl"
    events = [json.loads(line)["event"] for line in audit.read_text().splitlines()]
    assert "withheld" in events
    processes = psutil.Process(server.process.pid).children(recursive=True)
    named = re.search(r"(/\S+?/session_[\d_-]+)", " ".join(" ".join(process.cmdline()) for process in processes))
    assert named is not None
    files = [*(server.run / "logs").rglob("*"), *Path(named[1], "logs").rglob("*"), server.log]
    logs = [path for path in files if path.is_file()]
    assert len(logs) > 10
    for path in logs:
        content = path.read_bytes()
        assert secret.encode() not in content, path
        assert planted.encode() not in content, path
