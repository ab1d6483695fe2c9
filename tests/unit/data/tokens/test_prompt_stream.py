import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.data.tokens.prompt_stream import Prompt, PromptStream
from castor.io.errors import CastorError


@st.composite
def shapes(draw):
    """(number of prompts, batch size, seed, batches drawn)"""
    count = draw(st.integers(1, 40))
    return count, draw(st.integers(1, count)), draw(st.integers(0, 2**31)), draw(st.integers(0, 60))


def stream_of(count, batch_size, seed):
    return PromptStream([prompt(f"prompt {i}") for i in range(count)], batch_size, seed)


def prompt(text):
    return Prompt(text, np.array([1, 2], np.int32))


def indices(batches):
    return [index for batch in batches for index, _ in batch]


@given(shapes())
def test_every_epoch_visits_each_prompt_once_and_no_batch_repeats_one(shape):
    count, batch_size, seed, batches = shape
    stream = stream_of(count, batch_size, seed)
    drawn = [stream.next_batch() for _ in range(batches)]
    assert all(len(batch) == batch_size == len({index for index, _ in batch}) for batch in drawn)
    flat = [pair for batch in drawn for pair in batch]
    assert all(drawn.text == f"prompt {index}" for index, drawn in flat)
    for start in range(0, len(flat) - count + 1, count):
        assert sorted(index for index, _ in flat[start : start + count]) == list(range(count))


@given(shapes())
def test_a_restored_stream_goes_on_identically(shape):
    count, batch_size, seed, batches = shape
    stream = stream_of(count, batch_size, seed)
    for _ in range(batches):
        stream.next_batch()
    state = json.loads(json.dumps(stream.state_dict()))
    restored = stream_of(count, batch_size, seed)
    restored.next_batch()
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert indices(restored.next_batch() for _ in range(50)) == indices(stream.next_batch() for _ in range(50))


@given(shapes())
def test_the_same_seed_gives_the_same_stream(shape):
    count, batch_size, seed, batches = shape
    first, second = stream_of(count, batch_size, seed), stream_of(count, batch_size, seed)
    assert indices(first.next_batch() for _ in range(batches)) == indices(second.next_batch() for _ in range(batches))


def test_epochs_and_seeds_differ_in_order():
    def epochs(seed):
        stream = stream_of(30, 30, seed)
        return [tuple(index for index, _ in stream.next_batch()) for _ in range(3)]

    assert len({*epochs(0), *epochs(1)}) == 6


def test_places_in_an_epoch_stay_uniform_when_batches_cross_epochs():
    """Holding prompts back at a crossing must not keep the same prompts at the end of every epoch."""
    stream = stream_of(10, 4, 0)
    flat = [index for _ in range(5000) for index, _ in stream.next_batch()]
    last = Counter(flat[9::10])
    # 2,000 epochs, 200 expected for each prompt; 5 standard deviations of a binomial are 67.
    assert all(133 <= last[index] <= 267 for index in range(10))


def test_repeated_prompts_are_told_apart_by_their_index():
    batch = PromptStream([prompt("same"), prompt("same")], 2, 0).next_batch()
    assert sorted((index, drawn.text) for index, drawn in batch) == [(0, "same"), (1, "same")]


def test_state_of_other_prompts_seed_or_batch_size_is_refused():
    state = stream_of(5, 2, 0).state_dict()
    for other, what in (
        (stream_of(6, 2, 0), "the prompts"),
        (stream_of(5, 2, 1), "the seed"),
        (stream_of(5, 3, 0), "the batch size"),
    ):
        with pytest.raises(CastorError, match=f"{what} of the prompt stream changed"):
            other.load_state_dict(state)


@given(shapes(), st.data())
def test_what_is_set_aside_is_given_no_more_and_stays_so(shape, data):
    count, batch_size, seed, batches = shape
    stream = stream_of(count, batch_size, seed)
    drawn = [stream.next_batch() for _ in range(batches)]
    given = sorted({index for batch in drawn for index, _ in batch})
    kept = st.lists(st.sampled_from(given), unique=True, max_size=count - batch_size) if given else st.just([])
    aside = data.draw(kept)
    prompts = {index: each for batch in drawn for index, each in batch}
    assert [stream.set_aside(prompts[index]) for index in aside] == aside
    restored = stream_of(count, batch_size, seed)
    restored.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    later = [stream.next_batch() for _ in range(20)]
    assert indices(restored.next_batch() for _ in range(20)) == indices(later)
    assert all(len({index for index, _ in batch}) == batch_size for batch in later)
    assert not set(indices(later)) & set(aside)


def test_too_few_prompts_beside_those_set_aside_are_refused():
    stream = stream_of(3, 2, 0)
    (_, first), (_, second) = stream.next_batch()
    stream.set_aside(first)
    assert len(stream.next_batch()) == 2
    stream.set_aside(second)
    with pytest.raises(CastorError, match="a batch of 2 prompts cannot be drawn from 3, of which 2 are set aside"):
        stream.next_batch()


def test_impossible_batches_are_refused():
    with pytest.raises(CastorError, match="a batch of 3 prompts cannot be drawn from 2 prompts"):
        stream_of(2, 3, 0)
    with pytest.raises(CastorError, match="at least one prompt"):
        stream_of(2, 0, 0)
