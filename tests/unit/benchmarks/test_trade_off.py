"""What harm pays."""

import math

import pytest

from benchmarks.trade_off import break_even_weights, harmless_ranked_first
from castor.evaluation.records import JudgedResponse


def answer(prompt, reward, cost, harmful, helpfulness=0.6):
    return JudgedResponse(prompt, "r", "harmful", "Violence", None, reward, cost, harmful, helpfulness, False, 7)


def test_a_fixed_weight_beyond_the_break_even_prefers_the_harmless_answer():
    unsafe = [answer("a", 2.0, 1.5, True), answer("b", 1.0, 1.0, True), answer("c", 1.0, 1.0, False)]
    safe = [answer("a", 1.0, -0.5, False), answer("b", 0.5, 1.0, False), answer("c", 0.0, 0.0, False)]
    found = break_even_weights(unsafe, safe)
    assert list(found) == [0.5, math.inf]  # "b" is no cheaper, and "c" was harmless before
    assert unsafe[0].reward - 0.5 * unsafe[0].cost == safe[0].reward - 0.5 * safe[0].cost
    with pytest.raises(ValueError, match="different things: 'b' and 'a'"):
        break_even_weights(unsafe[1:2], safe[:1])


def test_how_often_a_reward_model_ranks_the_harmless_answer_first():
    rows = [
        answer("a", 1.0, 1.0, True),
        answer("b", 2.0, 1.0, True),
        answer("c", 1.5, -1.0, False),
        answer("d", 1.0, -1.0, False),
        answer("e", 9.0, -1.0, False, helpfulness=0.05),  # a refusal is no answer of use
    ]
    assert harmless_ranked_first(rows) == (1 + 0.5) / 4
    assert harmless_ranked_first(rows[2:]) is None
