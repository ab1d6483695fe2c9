"""A replica of the judges, without Ray Serve around it: windows of a stream are read on, and judged as the whole is."""

from collections.abc import Callable

import numpy as np
import pytest

from castor.config.serve import Serve
from castor.data.rows.schemas import Exchange
from castor.model_reference import ModelReference
from serve.judgement import Judgement, JudgeName
from serve.judges import JudgeServer
from serve.targets import Judge, Targets
from tests.conftest import TinyModels

ASKED: tuple[JudgeName, ...] = ("cost", "reward")
ANSWER = "First you take it apart. Then you clean what is dirty, and put it together."
WINDOWS = [Exchange("How do I repair a lamp?", ANSWER[:end]) for end in (20, 41, 60, len(ANSWER))]
Make = Callable[..., JudgeServer]


@pytest.fixture(scope="module")
def make(tiny_models: TinyModels) -> Make:
    judges: dict[JudgeName, Judge] = {
        "cost": Judge("cost", ModelReference(tiny_models.cost)),
        "reward": Judge("reward", ModelReference(tiny_models.reward)),
    }

    def made(**judging: int) -> JudgeServer:
        return JudgeServer(
            Targets((), judges, "auto", "test"), Serve.model_validate({"run_dir": "unused", "judges": judging})
        )

    return made


def judged(server: JudgeServer, texts: list[Exchange], streams: list[str | None]) -> list[Judgement]:
    return server._judged([(server._encode(text, ASKED), stream) for text, stream in zip(texts, streams, strict=True)])


def numbers(judgements: list[Judgement]) -> np.ndarray:
    return np.array([[each.cost, each.reward] for each in judgements])


def test_the_windows_of_several_streams_are_judged_as_if_all_of_them_was_read(make: Make) -> None:
    server, others = make(), make(kv_cache_mib=0)
    for window in WINDOWS:
        texts = [window, Exchange("Another question?", window.response[::-1]), window]
        found = judged(server, texts, ["one", "two", None])
        np.testing.assert_allclose(numbers(found), numbers(judged(others, texts, ["one", "two", None])), atol=1e-4)
        for kind in ASKED:
            read = server.read[kind].get("one")
            assert read is not None
            assert read.tokens.tolist() == server._encode(window, (kind,))[kind].tolist()
    assert not any(others.read.values())


def test_of_a_window_only_what_is_new_is_read(make: Make) -> None:
    server, sizes = make(), list[int]()
    layer = server.scores["cost"].frozen.model.backbone.layers[0]
    layer.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[1]))
    lengths = [len(server._encode(window, ("cost",))["cost"]) for window in WINDOWS]
    for window in WINDOWS:
        judged(server, [window], ["one"])
    judged(server, [WINDOWS[-1]], ["two"])  # another stream, if of the same text
    judged(server, [WINDOWS[-1]], [None])
    assert sizes[0] == lengths[0]
    assert sum(sizes[:4]) < lengths[-1] + 3 * 4  # the end of a text is read again, and where its last tokens changed
    assert sizes[4:] == [lengths[-1]] * 2


def test_what_no_longer_fits_is_read_anew(make: Make) -> None:
    server = make(kv_cache_mib=1)
    for number in range(80):
        judged(server, [WINDOWS[-1]], [str(number)])
    kept = [number for number in range(80) if server.read["cost"].get(str(number)) is not None]
    assert 0 < len(kept) < 80
    assert kept == list(range(80))[-len(kept) :]
    np.testing.assert_allclose(
        numbers(judged(server, [WINDOWS[-1]], ["0"])), numbers(judged(server, [WINDOWS[-1]], [None])), atol=1e-4
    )
