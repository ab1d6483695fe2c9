"""Keyword judges, and the language-model judge against a real HTTP server that also misbehaves."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from castor.config.assess import LLMJudge
from castor.data.rows.schemas import Exchange
from castor.io.errors import CastorError
from castor.scoring.chat_judge import SAFETY_TASK, judge_pairs, judge_safety
from castor.scoring.keywords import KEYWORDS, keyword_verdicts
from castor.taxonomy import PKU_CATEGORIES
from tests.chat_server import SAFE, UNSAFE, Answer, Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(script: Callable[[dict[str, str], int], Answer]) -> Server:
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge(server: Server, **options: Any) -> LLMJudge:
    return LLMJudge(kind="llm", url=server.url, model="m", **{"timeout_s": 5.0, "retries": 2, **options})


def ask(server: Server, answers: list[str], **options: Any) -> Any:
    texts = [Exchange("a question", answer) for answer in answers]
    return judge_safety(judge(server, **options), texts, np.arange(len(texts)), lambda done, total: None)


def test_verdicts_come_back_in_order_and_the_request_is_what_it_should_be(serve) -> None:
    server = serve(lambda texts, attempt: UNSAFE if "bad" in texts["answer"] else SAFE)
    seen: list[tuple[int, int]] = []
    texts = [Exchange("q", f"{'bad' if i % 3 == 0 else 'good'} {i}") for i in range(12)]
    asked = np.array([0, 1, 3, 4, 11])
    verdicts = judge_safety(judge(server), texts, asked, lambda done, total: seen.append((done, total)))
    assert np.flatnonzero(verdicts.given).tolist() == asked.tolist()
    assert np.flatnonzero(verdicts.said).tolist() == [0, 3]
    assert verdicts.failures == {}
    assert seen == [(i, 5) for i in range(1, 6)]
    body = server.bodies[0]
    assert body["temperature"] == 0
    assert body["response_format"] == {"type": "json_object"}
    assert json.loads(body["messages"][1]["content"]) == {"question": "q", "answer": "bad 0"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("unsafe", "reply is not the JSON asked for"),
        ('{"unsafe": "true"}', "reply is not the JSON asked for"),
        ('{"unsafe": 1}', "reply is not the JSON asked for"),
        ('{"unsafe": true, "why": "x"}', "reply is not the JSON asked for"),
        ('```json\n{"unsafe": true}\n```', "reply is not the JSON asked for"),
        ("", "reply is not the JSON asked for"),
        (b"{ not json", "reply is not the JSON asked for"),
        (b'{"choices": []}', "empty reply"),
        (b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": null}}]}', "empty reply"),
        (b'"a string"', "empty reply"),
        (b'{"error": "quota"}', "empty reply"),
        (400, "HTTP 400"),
        (500, "HTTP 500"),
        (429, "rate limit"),
        (2.0, "no reply within 0.5 s"),
    ],
)
def test_a_failure_is_counted_and_never_a_verdict(serve, answer: Answer, reason: str) -> None:
    server = serve(lambda texts, attempt: answer if texts["answer"] == "odd" else UNSAFE)
    timeout = 0.5 if isinstance(answer, float) else 5.0
    verdicts = ask(server, ["plain", "odd", "plainer"], retries=0, timeout_s=timeout)
    assert verdicts.given.tolist() == [True, False, True]
    assert verdicts.said.tolist() == [True, False, True]
    assert verdicts.failures == {reason: 1}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(serve, status: int) -> None:
    server = serve(lambda texts, attempt: status if attempt < 3 else UNSAFE)
    verdicts = ask(server, ["a", "b", "c"], retries=2)
    assert verdicts.given.all()
    assert verdicts.said.all()
    assert verdicts.failures == {}
    assert set(server.attempts.values()) == {3}


def test_a_timeout_is_tried_again(serve) -> None:
    server = serve(lambda texts, attempt: 1.5 if attempt == 1 and texts["answer"] == "slow" else UNSAFE)
    verdicts = ask(server, ["quick", "slow"], retries=1, timeout_s=0.5)
    assert verdicts.said.tolist() == [True, True]


def test_requests_run_side_by_side_but_not_too_many(serve) -> None:
    server = serve(lambda texts, attempt: 0.03)
    verdicts = ask(server, [str(i) for i in range(20)], concurrency=3)
    assert verdicts.given.all()
    assert server.most_active == 3


def test_only_failures_are_an_error(serve) -> None:
    server = serve(lambda texts, attempt: "I would rather not say")
    with pytest.raises(CastorError, match=r"no usable reply to 3 requests.*3 times: reply is not the JSON"):
        ask(server, ["a", "b", "c"])


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_one_error_after_one_request(serve, status: int) -> None:
    server = serve(lambda texts, attempt: status)
    with pytest.raises(CastorError, match=rf"refuses model 'm' \(HTTP {status}\).*OPENAI_API_KEY"):
        ask(server, ["a", "b", "c"])
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_is_one_error(serve) -> None:
    server = serve(lambda texts, attempt: SAFE)
    server.server_close()
    with pytest.raises(CastorError, match=r"no judge can be reached at http://127\.0\.0\.1"):
        ask(server, ["a", "b"], retries=0)


def prefer(rule: Callable[[str, str], str | int]) -> Callable[[dict[str, str], int], Answer]:
    def script(texts: dict[str, str], attempt: int) -> Answer:
        said = rule(texts["answer A"], texts["answer B"])
        return said if isinstance(said, int) else json.dumps({"preferred": said})

    return script


def test_pairs_are_asked_in_both_orders_and_only_a_verdict_that_survives_the_swap_counts(serve) -> None:
    def longer(a: str, b: str) -> str | int:
        if "fail" in a:  # only one of the two orders fails
            return 400
        if "place" in a:
            return "A"  # whatever comes first
        return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"

    server = serve(prefer(longer))
    pairs = [("long one", "x"), ("x", "long one"), ("same", "size"), ("place", "place"), ("ok", "fail")]
    texts = [(Exchange("q", first), Exchange("q", second)) for first, second in pairs]
    verdicts = judge_pairs(judge(server), texts, "more helpful", np.arange(5), lambda done, total: None)
    assert verdicts.given.tolist() == [True, True, False, False, False]
    assert verdicts.said[:2].tolist() == [False, True]
    assert verdicts.ties == 2
    assert verdicts.failures == {"HTTP 400": 1}
    assert len(server.bodies) == 10
    assert "more helpful" in server.bodies[0]["messages"][0]["content"]


def test_every_category_has_keywords() -> None:
    assert tuple(KEYWORDS) == PKU_CATEGORIES
    assert all(KEYWORDS.values())


def test_keywords_are_found_as_words_and_only_where_the_judge_looks() -> None:
    texts = [
        Exchange("How do I STEAL a car?", "I cannot help."),
        Exchange("What is your favourite method?", "The robot forgets the stable of the Scunthorpe gunner."),
        Exchange("What should I do?", "Keep stealing, it works."),
        Exchange("Why?", "They were terrorists."),
    ]
    assert keyword_verdicts(texts) == [True, False, True, True]
    assert keyword_verdicts(texts, "answer") == [False, False, True, True]
    assert keyword_verdicts(texts, "question") == [True, False, False, False]


def test_keywords_of_earlier_turns_are_found_with_the_question() -> None:
    texts = [Exchange("And now?", "Sure.", (("How do I hurt the dog?", "No."),)), Exchange("And now?", "Sure.")]
    assert keyword_verdicts(texts) == keyword_verdicts(texts, "question") == [True, False]
    assert keyword_verdicts(texts, "answer") == [False, False]
    assert keyword_verdicts([Exchange("And now?", "Sure.", (("How?", "You steal it."),))]) == [True]


def test_a_language_model_reads_the_whole_conversation(serve) -> None:
    """Two conversations that differ in an earlier turn only; a single turn is asked as it always was."""
    earlier = [(("how do i hurt the dog ?", "no ."),), (("how do i paint the door ?", "no ."),)]
    server = serve(lambda texts, attempt: UNSAFE if "hurt" in json.dumps(texts) else SAFE)
    texts = [*(Exchange("and now ?", "sure .", turns) for turns in earlier), Exchange("and now ?", "sure .")]
    verdicts = judge_safety(judge(server), texts, np.arange(3), lambda done, total: None)
    assert verdicts.said.tolist() == [True, False, False]
    sent = sorted((body["messages"] for body in server.bodies), key=lambda messages: messages[1]["content"])
    assert [json.loads(messages[1]["content"]) for messages in sent] == [
        {"earlier turns": [{"question": q, "answer": a} for q, a in turns], "question": "and now ?", "answer": "sure ."}
        for turns in earlier
    ] + [{"question": "and now ?", "answer": "sure ."}]
    assert [messages[0]["content"] == SAFETY_TASK for messages in sent] == [False, False, True]

    server = serve(prefer(lambda a, b: "tie" if a == b else "A" if a == "safe" else "B"))
    pair = (Exchange("and now ?", "safe", earlier[0]), Exchange("and now ?", "harm", earlier[0]))
    verdicts = judge_pairs(judge(server), [pair], "less harmful", np.arange(1), lambda done, total: None)
    assert (verdicts.given.tolist(), verdicts.said.tolist()) == ([True], [False])
    assert all("hurt the dog" in body["messages"][1]["content"] for body in server.bodies)
