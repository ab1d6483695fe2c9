import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.experience import Experience, ragged_take

pairs = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8)


def experience(lengths, first_uid=0):
    """Every token and log-probability is unique, so that a row in the wrong place cannot go unseen."""
    prompts, responses = (np.array([pair[k] for pair in lengths], dtype=np.int32) for k in range(2))
    total = int(responses.sum())
    return Experience(
        uids=np.arange(first_uid, first_uid + len(lengths), dtype=np.int64),
        prompts=tuple(f"prompt {first_uid + i}" for i in range(len(lengths))),
        tokens=np.arange(int(prompts.sum()) + total, dtype=np.int32) + 1000 * first_uid,
        prompt_lengths=prompts,
        response_lengths=responses,
        logprobs=-np.arange(total, dtype=np.float32) - first_uid,
        versions=np.arange(total, dtype=np.int32) % 3,
        truncated=np.arange(len(lengths)) % 2 == 0,
    )


def equal(first, second):
    names = [field.name for field in dataclasses.fields(Experience) if field.name != "prompts"]
    return first.prompts == second.prompts and all(
        np.array_equal(getattr(first, name), getattr(second, name))
        and getattr(first, name).dtype == getattr(second, name).dtype
        for name in names
    )


BASE = experience([(2, 3), (1, 2)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": BASE.tokens[:-1]}, "7 tokens do not fill"),
        ({"logprobs": BASE.logprobs[:-1]}, "log-probability and a version"),
        ({"versions": BASE.versions[:-1]}, "log-probability and a version"),
        ({"logprobs": np.array([0, -1, np.nan, 0, 0], dtype=np.float32)}, "not finite"),
        ({"logprobs": np.array([0, -1, -np.inf, 0, 0], dtype=np.float32)}, "not finite"),
        ({"response_lengths": np.array([5, 0], dtype=np.int32)}, "empty prompt or an empty response"),
        ({"prompt_lengths": np.array([3, 0], dtype=np.int32)}, "empty prompt or an empty response"),
        ({"uids": BASE.uids[:1]}, "1 uids"),
        ({"truncated": BASE.truncated[:1]}, "2 uids"),
        ({"prompts": BASE.prompts[:1]}, "2 uids"),
    ],
)
def test_broken_invariants_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **changes)


def test_a_worked_selection():
    picked = BASE.select([1])
    assert picked.tokens.tolist() == [5, 6, 7]
    assert picked.prompts == ("prompt 1",)
    assert (picked.uids.tolist(), picked.prompt_lengths.tolist(), picked.response_lengths.tolist()) == ([1], [1], [2])
    assert picked.logprobs.tolist() == [-3.0, -4.0]
    assert picked.versions.tolist() == [0, 1]
    assert picked.truncated.tolist() == [False]
    assert BASE.lengths.tolist() == [5, 3]


@given(pairs, st.randoms())
def test_selecting_a_permutation_and_its_inverse_changes_nothing(lengths, random):
    batch = experience(lengths)
    order = list(range(len(lengths)))
    random.shuffle(order)
    assert equal(batch.select(order).select(np.argsort(order)), batch)


@given(st.lists(pairs, min_size=1, max_size=4))
def test_concatenating_and_selecting_the_parts_gives_them_back(parts):
    experiences = [experience(lengths, first_uid=100 * i) for i, lengths in enumerate(parts)]
    whole, start = Experience.concatenate(experiences), 0
    assert len(whole) == sum(len(part) for part in experiences)
    for part in experiences:
        assert equal(whole.select(range(start, start + len(part))), part)
        start += len(part)


@given(pairs)
def test_selecting_nothing_is_an_empty_experience_that_still_concatenates(lengths):
    batch = experience(lengths)
    empty = batch.select([])
    assert len(empty) == len(empty.tokens) == 0
    assert equal(Experience.concatenate([empty, batch, empty]), batch)


def test_nothing_cannot_be_concatenated():
    with pytest.raises(ValueError, match="no experience"):
        Experience.concatenate([])


@given(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=6), st.data())
def test_ragged_take_picks_rows(rows, data):
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    flat = np.array([value for row in rows for value in row], dtype=object)
    taken = ragged_take(flat, np.array([len(row) for row in rows]), np.array(wanted, dtype=np.int64))
    assert taken.tolist() == [value for i in wanted for value in rows[i]]
