"""Functions and remote scorers as judges of texts: what they return is a number of theirs, or an error."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from castor.config.judge import HTTPScorer
from castor.io.errors import CastorError
from castor.io.user_function import function_finding, load_function
from castor.scoring.function import FunctionScorer
from castor.scoring.http import RemoteScorer

MODULE = """
import math
def score(prompts, responses): return [len(r) - len(p) for p, r in zip(prompts, responses)]
def short(prompts, responses): return [0.0]
def nan(prompts, responses): return [1.0 if "a" in p else math.nan for p in prompts]
def text(prompts, responses): return "0" * len(prompts)
def words(prompts, responses): return ["7" for _ in prompts]
def number(prompts, responses): return 1.0
def fails(prompts, responses): raise RuntimeError("the judge is asleep")
not_a_function = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module beside nothing but itself, and an import path that forgets it."""
    import sys

    (tmp_path / "my_scores.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_scores", None)


def test_a_function_gives_one_number_a_response(module):
    scorer = FunctionScorer("my_scores:score", module)
    assert scorer(["a", "bb"], ["ccc", ""]) == [2.0, -2.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", r"my_scores:short returned 1 scores for 2 responses \(the first one to the prompt 'a'\)"),
        ("nan", r"my_scores:nan gave nan as the score of a response to the prompt 'b'"),
        ("text", r"my_scores:text returned str; it must return one number for each response"),
        ("words", r"my_scores:words gave '7' as the score of a response to the prompt 'a'"),
        ("number", r"my_scores:number returned float"),
    ],
)
def test_what_is_no_score_is_an_error_with_the_function_and_the_prompt(module, name, message):
    with pytest.raises(CastorError, match=message):
        FunctionScorer(f"my_scores:{name}", module)(["a", "b"], ["x", "y"])


def test_an_exception_of_the_function_is_told_with_its_file_and_line(module):
    message = r"my_scores:fails failed: RuntimeError: the judge is asleep \(.*my_scores\.py, line 9: def fails"
    with pytest.raises(CastorError, match=message) as told:
        FunctionScorer("my_scores:fails", module)(["a"], ["x"])
    assert isinstance(told.value.__cause__, RuntimeError)  # whose traceback goes to the log


def test_a_module_that_cannot_be_imported_is_told_with_its_line(module):
    (module / "my_scores.py").write_text("x = 1\ny = x / 0\n")
    with pytest.raises(
        CastorError, match=r"my_scores:score cannot be imported: ZeroDivisionError: .*, line 2: y = x / 0"
    ):
        load_function("my_scores:score", module)
    (module / "my_scores.py").write_text("def score(:\n")
    with pytest.raises(CastorError, match=r"cannot be imported: SyntaxError: .*my_scores\.py, line 1\)"):
        load_function("my_scores:score", module)


def test_a_function_is_asked_whether_it_takes_what_it_will_be_given(module, monkeypatch):
    monkeypatch.chdir(module)
    assert function_finding("my_scores:score", ["prompts", "responses"]) is None
    found = function_finding("my_scores:score", ["source"])
    assert found == (
        "my_scores:score(prompts, responses) will be called with (source): missing a required argument: 'responses'"
    )
    assert "has no function scor;" in (function_finding("my_scores:scor", ["prompts", "responses"]) or "")


def test_a_function_that_is_not_there_is_named(module):
    with pytest.raises(CastorError, match="module my_scores has no function scor; check"):
        load_function("my_scores:scor", module)
    with pytest.raises(CastorError, match="module my_scores has no function not_a_function"):
        load_function("my_scores:not_a_function", module)
    with pytest.raises(CastorError, match="start castor in the folder of the module"):
        load_function("nobody_has_this:score", module)


class Server(ThreadingHTTPServer):
    """`script(items, attempt)` gives the status, and the body or the scores, of each request."""

    daemon_threads = True

    def __init__(self, script: Callable[[list[dict[str, str]], int], tuple[int, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.lock = script, threading.Lock()
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.active = self.most_active = self.connections = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1/score"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((body, dict(self.headers)))
            attempt = len(self.server.requests)
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
        try:
            status, answer = self.server.script(body["items"], attempt)
        finally:
            with self.server.lock:
                self.server.active -= 1
        reply = answer if isinstance(answer, bytes) else json.dumps({"model": "m", "scores": answer}).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)
        except BrokenPipeError:  # the client has given up waiting, as it should
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Any], Server]]:
    servers: list[Server] = []

    def start(script: Any) -> Server:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def lengths(items: list[dict[str, str]], _attempt: int) -> tuple[int, Any]:
    return 200, [{"cost": len(item["response"]) - 2.5, "reward": None, "unsafe": False} for item in items]


def scorer(server: Server, field: str = "cost", **options: Any) -> RemoteScorer:
    return RemoteScorer(HTTPScorer(url=server.url, **{"retries": 2, "retry_wait_s": 0.0, **options}), field)


def test_batches_come_back_in_order(serve):
    server = serve(lengths)
    responses = ["x" * n for n in range(7)]
    assert scorer(server, batch_size=2)([f"p{n}" for n in range(7)], responses) == [n - 2.5 for n in range(7)]
    sizes = sorted(len(body["items"]) for body, _ in server.requests)
    assert sizes == [1, 2, 2, 2]
    assert {"prompt": "p3", "response": "xxx"} in [item for body, _ in server.requests for item in body["items"]]


def test_concurrency_is_bounded(serve):
    def slow(items, attempt):
        time.sleep(0.05)
        return lengths(items, attempt)

    server = serve(slow)
    scorer(server, batch_size=1, concurrency=3)(["p"] * 12, ["r"] * 12)
    assert 1 <= server.most_active <= 3


def test_no_two_threads_have_one_client(serve):
    ask = scorer(serve(lengths))
    with ask._client() as mine, ask._client() as another:
        assert mine is not another
    with ask._client() as again:
        assert again in (mine, another)


def test_connections_are_used_again(serve, monkeypatch):
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    server = serve(lengths)
    ask = scorer(server, batch_size=1, concurrency=3)
    for _ in range(2):
        ask(["p"] * 20, ["r"] * 20)
    assert len(server.requests) == 40
    assert server.connections <= 3


def test_a_server_error_is_tried_again_and_then_forgotten(serve):
    server = serve(lambda items, attempt: (500, b"busy") if attempt < 3 else lengths(items, attempt))
    assert scorer(server)(["p"], ["rrr"]) == [0.5]
    assert len(server.requests) == 3


def test_errors_to_the_end_are_an_error_with_url_and_status(serve):
    server = serve(lambda items, attempt: (503, b"no model loaded"))
    with pytest.raises(CastorError, match=rf"{server.url} answered HTTP 503 'no model loaded', 3 times"):
        scorer(server)(["p"], ["r"])
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "advice"), [(401, "http.headers_env"), (404, "correct http.url"), (422, "lower")])
def test_a_refusal_is_not_tried_again(serve, status, advice):
    server = serve(lambda items, attempt: (status, b"why"))
    with pytest.raises(CastorError, match=rf"refused with HTTP {status} 'why': .*{advice}"):
        scorer(server)(["p"], ["r"])
    assert len(server.requests) == 1


def test_a_timeout_is_tried_again_and_then_named(serve):
    def sleepy(items, attempt):
        time.sleep(5.0)
        return lengths(items, attempt)

    server = serve(sleepy)
    with pytest.raises(CastorError, match=r"gave no reply within 0.5 s, 2 times: .*http\.timeout_s"):
        scorer(server, timeout_s=0.5, retries=1)(["p"], ["r"])
    assert 1 <= len(server.requests) <= 2


def test_nobody_there_is_named():
    remote = RemoteScorer(HTTPScorer(url="http://127.0.0.1:9/", retries=0, timeout_s=5), "cost")
    with pytest.raises(CastorError, match=r"the scorer at http://127\.0\.0\.1:9/ cannot be reached .*, 1 times"):
        remote(["p"], ["r"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], r"gave 0 scores for 1 responses \(the first one to the prompt 'p'\)"),
        ([{"cost": math.nan}], r"gave nan as the cost of a response to the prompt 'p'"),
        ([{"cost": None}], r"gave None as the cost"),
        ([{"cost": True}], r"gave True as the cost"),
        ([{"reward": 1.0}], r"correct http\.url or http\.field"),
        ([1.0], r"correct http\.url or http\.field"),
        (b"<html>", r"replied with '<html>'"),
        (b'{"score": 1}', r"replied with '\{.score.: 1\}'"),
    ],
)
def test_what_is_no_score_ends_the_run(serve, answer, message):
    with pytest.raises(CastorError, match=message):
        scorer(serve(lambda items, attempt: (200, answer)))(["p"], ["r"])


def test_headers_come_from_the_environment(serve, monkeypatch):
    server = serve(lengths)
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(CastorError, match="MY_TOKEN, which is not set"):
        scorer(server, headers_env={"Authorization": "MY_TOKEN"})
    monkeypatch.setenv("MY_TOKEN", "Bearer 7")
    scorer(server, headers_env={"Authorization": "MY_TOKEN"})(["p"], ["r"])
    assert server.requests[0][1]["Authorization"] == "Bearer 7"
