"""How requests are dealt to rollout workers."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.jobs import deal_requests
from actors.rollout import PromptRequest
from castor.data.tokens.prompt_stream import Prompt


def requests_of(prompts: int, samples: int) -> list[PromptRequest]:
    return [
        PromptRequest(number * samples + sample, Prompt(f"prompt {number}", (1, 2)), seed=0)
        for number in range(prompts)
        for sample in range(samples)
    ]


@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 7))
def test_workers_get_equally_many_and_prompts_are_cut_only_where_that_needs_it(prompts, samples, workers):
    asked = requests_of(prompts, samples)
    shares = deal_requests(asked, workers)
    assert sorted(request.uid for share in shares for request in share) == [request.uid for request in asked]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    at = Counter(text for share in shares for text in {request.prompt.text for request in share})
    assert sum(at.values()) - prompts <= workers - 1  # each cut between two shares tears one prompt, at most
    if prompts % workers == 0:
        assert set(at.values()) <= {1}


@given(st.integers(0, 30), st.integers(1, 7))
def test_prompts_with_one_response_go_round(prompts, workers):
    asked = requests_of(prompts, 1)
    assert deal_requests(asked, workers) == [asked[first::workers] for first in range(workers)]
