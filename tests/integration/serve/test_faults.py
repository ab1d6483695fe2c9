"""What dies, hangs or talks nonsense while clients are answered: no unjudged token, and it comes back by itself."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest

from castor.config.data import DataSource
from castor.data.rows.load import load_prompts
from castor.data.sources.report import RowReport
from tests.integration.serve.conftest import DEADLINE_S, GARBAGE, Server
from tests.integration.serve.load import COMPLETIONS, Outcome, ask
from tests.integration.serve.test_guard import expect_cleared

BACK_S = 120  # until a dead replica is replaced
CLEAN = {"judge_unreachable", "judge_timeout", "policy_unreachable", "policy_failed"}
LOST = {"RemoteProtocolError", "ReadError", "ConnectError", "broken off", "JSONDecodeError"}  # of a front that died


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return load_prompts(DataSource(limit=400), RowReport())


class Load:
    """Clients that ask again and again, streamed and not, while something happens."""

    def __init__(self, server: Server, prompts: list[str], clients: int = 4) -> None:
        self.server, self.prompts, self.outcomes = server, prompts, list[Outcome]()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def _ask(self, number: int) -> None:
        rng = random.Random(number)
        while not self.ended.is_set():
            how = {"stream": rng.random() < 0.6, "n": rng.choice([1, 1, 2])}
            guard = rng.choice(["withhold", "regenerate", "best_of"])
            found = ask(
                self.server, rng.choice(self.prompts), seed=rng.randrange(10**6), castor={"guard": guard}, **how
            )
            self.outcomes.append(found)
            if found.status is None:
                time.sleep(0.2)  # nobody listens: do not turn in circles

    @property
    def errors(self) -> set[str]:
        return {outcome.error for outcome in self.outcomes if outcome.error is not None}

    def wait_for(self, condition: Callable[[list[Outcome]], bool], seconds: float, since: int | None = None) -> None:
        """Until the outcomes from now on, or those after the first `since`, fulfil a condition."""
        begun, deadline = len(self.outcomes) if since is None else since, time.monotonic() + seconds
        while not condition(self.outcomes[begun:]):
            assert time.monotonic() < deadline, self.outcomes[begun:][-5:]
            time.sleep(0.1)

    @contextmanager
    def expecting(self, *errors: str) -> Iterator[None]:
        """What is done within makes a request fail with one of these errors, or, without any, with some error."""
        since = len(self.outcomes)
        yield
        self.wait_for(
            lambda outcomes: any(each.error and (not errors or each.error in errors) for each in outcomes), 60, since
        )


@contextmanager
def load(server: Server, prompts: list[str]) -> Iterator[Load]:
    """Clients at work; in the end nothing of what they got was unjudged, and all of them are answered again."""
    clients = Load(server, prompts)
    for thread in clients.threads:
        thread.start()
    try:
        clients.wait_for(lambda outcomes: len(outcomes) >= 8, 60)
        yield clients
        clients.wait_for(lambda outcomes: sum(each.error is None for each in outcomes[-8:]) == 8, BACK_S)
    finally:
        clients.ended.set()
        for thread in clients.threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in clients.threads)
    expect_cleared(server, clients.outcomes)
    assert any(answer.pieces for outcome in clients.outcomes for answer in outcome.answers)


def kill(process: psutil.Process) -> None:
    process.kill()
    process.wait(20)


def engine(server: Server) -> psutil.Process:
    """vLLM's engine, a process of its own: its replica notices when it dies, and ends as well."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [each for each in family if "EngineCore" in " ".join(each.cmdline())]
    return found


def replica(deployment: str) -> Callable[[Server], psutil.Process]:
    return lambda server: server.replica(deployment)


VICTIMS: dict[str, tuple[Callable[[Server], psutil.Process], set[str]]] = {  # who, and the errors that it may cause
    "judges": (replica("judges"), CLEAN),
    "policy": (replica("policy"), CLEAN),
    "engine": (engine, CLEAN),
    "gateway": (replica("gateway"), CLEAN | LOST),
}


def test_whatever_is_killed_at_whatever_moment(server: Server, prompts: list[str]) -> None:
    """Each once under load, in an order and after times that are drawn anew every time.

    Who asks meanwhile may see an error or wait for the replacement, as the moment has it.
    """
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with load(server, prompts) as clients:
        for name in rng.sample(sorted(VICTIMS), len(VICTIMS)):
            find, allowed = VICTIMS[name]
            begun, victim = len(clients.outcomes), find(server)
            time.sleep(rng.uniform(0.0, 3.0))
            kill(victim)
            clients.wait_for(lambda outcomes: sum(each.error is None for each in outcomes[-8:]) == 8, BACK_S)
            assert find(server).pid != victim.pid
            assert {each.error for each in clients.outcomes[begun:]} - {None} <= allowed, name


def test_a_judge_stands_still(server: Server, prompts: list[str]) -> None:
    judge = server.replica("judges")
    with load(server, prompts) as clients:
        try:
            with clients.expecting("judge_timeout"):
                judge.suspend()
        finally:
            judge.resume()
    assert clients.errors <= CLEAN
    assert server.replica("judges").pid == judge.pid  # it was slow, not dead


def test_a_judge_is_slow(server: Server, prompts: list[str]) -> None:
    """Pauses that end before the deadline cost time, and nothing else."""
    judge, rng = server.replica("judges"), random.Random(0)
    with load(server, prompts) as clients:
        for _ in range(4):
            judge.suspend()
            time.sleep(rng.uniform(0.2, 0.1 * DEADLINE_S))
            judge.resume()
            clients.wait_for(lambda outcomes: len(outcomes) >= 4, 60)
    assert clients.errors == set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("guard", ["withhold", "best_of", "regenerate"])
def test_a_judge_talks_nonsense(server: Server, guard: str, stream: bool) -> None:
    """The cost model gives no finite number for a text with this token in it."""
    outcome = ask(server, f"what is {GARBAGE} ?", stream=stream, castor={"guard": guard})
    assert (outcome.status, outcome.error) == (502, "judge_unusable")
    assert not outcome.answers[0].pieces
    annotated = ask(server, f"what is {GARBAGE} ?", stream=stream, castor={"guard": "annotate"}).answers[0]
    assert annotated.castor["judged"] is False
    assert annotated.castor["error"]["code"] == "judge_unusable"
    assert ask(server, "what is that ?", stream=stream, castor={"guard": guard}).error is None  # nobody else suffers


def test_a_client_that_goes_away_ends_its_generation(server: Server) -> None:
    """Streamed or not. Half a minute's worth of tokens was asked for, which nothing else would wait for in vain."""
    body = {"model": "ppo_lag", "prompt": "bake", "max_tokens": 200, "ignore_eos": True, "n": 16}

    def ask_and_leave(stream: bool) -> None:
        short = httpx.Timeout(60, read=60 if stream else 0.5)
        how = {"json": body | {"stream": stream}, "headers": server.headers, "timeout": short}
        with suppress(httpx.ReadTimeout), httpx.stream("POST", server.url + COMPLETIONS, **how) as answer:
            assert next(answer.iter_bytes())
            assert stream

    with ThreadPoolExecutor(12) as pool:
        for job in [pool.submit(ask_and_leave, number % 2 == 0) for number in range(24)]:
            job.result()
    deadline = time.monotonic() + 10
    while "castor_running 0.0" not in server.get("/metrics").text:
        assert time.monotonic() < deadline, server.get("/metrics").text
        time.sleep(0.1)
    assert server.get("/readyz").status_code == 200
