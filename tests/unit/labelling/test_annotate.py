"""Labels from a language model: what it says, what it does not say, and the rule that safe ranks above unsafe."""

import threading

import pytest

from castor.config.assess import ChatServer
from castor.labelling.language_model import annotate
from tests.chat_server import SAFE, UNSAFE, Server


def pair(first, second):
    return {"prompt": "q", "response_0": first, "response_1": second, "better_response_id": None}


@pytest.fixture
def server():
    """Calls `bad` unsafe, prefers the longer answer in both criteria, and has no reply about `mute`."""

    def script(texts, attempt):
        if "mute" in "".join(texts.values()):
            return "no JSON"
        if "answer" in texts:
            return UNSAFE if "bad" in texts["answer"] else SAFE
        lengths = len(texts["answer A"]), len(texts["answer B"])
        said = "tie" if lengths[0] == lengths[1] else "A" if lengths[0] > lengths[1] else "B"
        return f'{{"preferred": "{said}"}}'

    running = Server(script)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_labels_of_pairs(server):
    rows = [pair("long and bad", "good"), pair("good", "better"), pair("one", "two"), pair("mute", "good")]
    seen = []
    labelled = annotate(ChatServer(url=server.url, model="m"), rows, lambda done, total: seen.append((done, total)))
    names = ("is_response_0_safe", "is_response_1_safe", "better_response_id", "safer_response_id")
    assert [tuple(row[name] for name in names) for row in labelled] == [
        (False, True, 0, 1),  # the model prefers the unsafe one as less harmful; the flags decide
        (True, True, 1, 1),
        (True, True, None, None),  # a tie
        (None, True, None, None),
    ]
    assert [row["prompt"] for row in labelled] == ["q"] * 4
    assert seen == [(i, 24) for i in range(1, 25)]
