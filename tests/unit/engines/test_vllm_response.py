"""What a finished request of vLLM becomes: a log-probability and a version for every token, or an error."""

from types import SimpleNamespace

import pytest

from engines.vllm_engine import Request, Response, _response

ASKED = Request(3, [5, 6], 0)


def finished(tokens=(7, 8), named=(7, 8), versions=((0, 2, "4"),), reason="stop", flat=True):
    """As vLLM tells of it; `named`: the tokens that have a log-probability."""
    numbers = SimpleNamespace(token_ids=list(named), logprobs=[-0.5 * token for token in named]) if flat else None
    spans = [SimpleNamespace(start=start, end=end, version=version) for start, end, version in versions]
    completion = SimpleNamespace(
        token_ids=tokens, logprobs=numbers, weight_versions=spans, finish_reason=reason, text=""
    )
    return SimpleNamespace(outputs=[completion])


def test_every_token_has_its_log_probability_and_version():
    assert _response(ASKED, finished()) == Response(3, [5, 6], [7, 8], [-3.5, -4.0], [4, 4], False)
    assert _response(ASKED, finished(reason="length")).truncated
    assert _response(ASKED, finished(versions=((0, 1, "1"), (1, 2, "2")))).versions == [1, 2]


@pytest.mark.parametrize("kind", [{"named": (7,)}, {"named": (7, 9)}, {"flat": False}, {"tokens": (), "named": ()}])
def test_a_token_without_a_log_probability_is_an_error(kind):
    with pytest.raises(RuntimeError, match="no log-probability for every token of request 3"):
        _response(ASKED, finished(**kind))


def test_a_token_without_a_version_is_an_error():
    with pytest.raises(RuntimeError, match="which weights sampled the tokens of request 3"):
        _response(ASKED, finished(versions=((0, 1, "4"),)))


def test_a_request_that_vllm_gave_up_is_an_error():
    with pytest.raises(RuntimeError, match="request 3 with 'abort'"):
        _response(ASKED, finished(reason="abort"))
