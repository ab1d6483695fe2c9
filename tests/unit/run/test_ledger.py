"""The ledger: a run that dealt every prompt once passes, and every way in which it did not is named."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from castor.data.tokens.prompt_stream import Prompt, PromptStream
from castor.io.errors import CastorError
from castor.run.ledger import Entry, Terms, check_ledger
from tests.run_folders import ledger


@given(
    prompts=st.integers(1, 12), batch=st.integers(1, 12), samples=st.integers(1, 3), staleness=st.integers(0, 2),
    steps=st.integers(0, 9), seed=st.integers(0, 5),
)  # fmt: skip
def test_what_the_prompt_stream_deals_passes(prompts, batch, samples, staleness, steps, seed):
    terms = Terms(prompts, min(batch, prompts), samples, staleness)
    entries = [Entry.from_json(entry.to_json()) for entry in ledger(steps, terms, seed)]
    assert check_ledger(entries, terms) == steps


@given(data=st.data(), seed=st.integers(0, 5))
def test_what_is_dealt_while_prompts_are_set_aside_and_steps_are_taken_again_passes(data, seed):
    terms = Terms(prompts=7, prompts_per_step=3, samples_per_prompt=1, max_staleness=0)
    stream = PromptStream([Prompt(str(n), None) for n in range(terms.prompts)], terms.prompts_per_step, seed)
    entries, places = [], [stream.state_dict()]
    for action in data.draw(st.lists(st.sampled_from(["step", "step", "step", "aside", "back"]), max_size=40)):
        if action == "step":
            told = {prompt for entry in entries for prompt in entry.aside}
            aside = tuple(prompt for prompt in stream.aside if prompt not in told)
            dealt = stream.next_batch()
            version = len(entries)
            entries.append(Entry(version + 1, tuple((n, 0, version, version) for n, _ in dealt), aside))
            places.append(stream.state_dict())
        elif action == "aside" and len(stream.aside) < 4:
            _, prompt = data.draw(st.sampled_from(stream.next_batch()))  # it was dealt, and is not trained on
            stream.load_state_dict(places[-1])
            assert stream.set_aside(prompt) in stream.aside
        elif action == "back":
            kept = data.draw(st.integers(0, len(entries)))
            entries, places = entries[:kept], places[: kept + 1]
            stream.load_state_dict(json.loads(json.dumps(places[-1])))
    assert check_ledger(entries, terms) == len(entries)


TERMS = Terms(prompts=6, prompts_per_step=2, samples_per_prompt=2, max_staleness=1)


def lose_a_step(entries):
    del entries[2]


def train_on_a_step_twice(entries):
    entries.insert(3, entries[2])


def lose_a_response(entries):
    entries[1] = replace(entries[1], responses=entries[1].responses[:-1])


def train_on_a_response_twice(entries):
    entries[1] = replace(entries[1], responses=(*entries[1].responses, entries[1].responses[0]))


def deal_a_prompt_again(entries):
    entries[1] = replace(entries[1], responses=entries[0].responses)


def train_on_what_was_set_aside(entries):
    entries[1] = replace(entries[1], aside=(entries[1].responses[0][0],))


def be_too_old(entries):
    responses = tuple((prompt, sample, 1, 1) for prompt, sample, *_ in entries[3].responses)
    entries[3] = replace(entries[3], responses=responses)


def be_of_the_future(entries):
    responses = tuple((prompt, sample, 3, 4) for prompt, sample, *_ in entries[3].responses)
    entries[3] = replace(entries[3], responses=responses)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lose_a_step, "has step 4 where step 3 should be"),
        (train_on_a_step_twice, "has step 3 where step 4 should be"),
        (lose_a_response, r"step 2 was trained on the samples \[0\] of prompt \d"),
        (train_on_a_response_twice, r"step 2 was trained on the samples \[0, 0, 1\] of prompt \d|trained on 3 prompts"),
        (deal_a_prompt_again, r"prompt \d was dealt twice in the epoch of step 2"),
        (train_on_what_was_set_aside, r"prompt \d was set aside before step 2"),
        (be_too_old, "versions 1 to 1: versions from 2 to 3 are allowed"),
        (be_of_the_future, "versions 3 to 4: versions from 2 to 3 are allowed"),
    ],
)
def test_a_fault_is_named(fault, message):
    entries = ledger(6, TERMS)
    fault(entries)
    with pytest.raises(CastorError, match=message):
        check_ledger(entries, TERMS)


@pytest.mark.parametrize(
    "line", [{}, {"step": 1}, {"step": "x", "responses": []}, {"step": 1, "responses": [[1, 2]]}, 3]
)
def test_a_line_that_is_no_entry_is_named(line):
    with pytest.raises(CastorError, match="a line that is none of its own"):
        Entry.from_json(line)
