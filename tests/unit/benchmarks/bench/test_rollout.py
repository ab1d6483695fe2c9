"""What the bench's section on rollouts asks for, and how it counts."""

import pytest

from benchmarks.bench.random_models import llama
from benchmarks.bench.rollout import Load, loads, rates
from castor.data.tokens.prompt_stream import Prompt


def test_each_prompt_is_asked_as_often_as_it_has_samples_with_seeds_of_their_own():
    prompts = [Prompt(str(i), None) for i in range(2)]
    requests = Load("", llama(64, 1, 512, 64), 2, 8, 3, 8).requests(prompts)
    assert [request.prompt.text for request in requests] == ["0", "0", "0", "1", "1", "1"]
    assert [request.seed for request in requests] == [request.uid for request in requests] == [0, 1, 2, 3, 4, 5]


def test_rates_are_the_tokens_of_each_repetition_by_its_seconds(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 15.0])
    monkeypatch.setattr("benchmarks.bench.measurement.time.perf_counter", lambda: next(clock))
    counts = iter([1000, 10, 20])  # the first one warms up
    assert rates({"work": lambda: next(counts)}, repetitions=2) == {"work": (10 / 2, 20 / 5)}


@pytest.mark.parametrize("smoke", [False, True])
def test_sequences_fit_the_models_context(smoke):
    for load in loads(smoke):
        assert load.prompt_tokens + load.max_new_tokens <= load.model.max_position_embeddings
