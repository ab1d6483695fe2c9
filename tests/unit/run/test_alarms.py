"""What the numbers of a run give reason to say."""

import pytest

from castor.config.alarms import Alarms
from castor.config.multipliers import Multipliers
from castor.config.rlhf import RLHF
from castor.config.signal import Signal
from castor.config.training import Engine
from castor.run.alarms import alarms


def config(**multipliers):
    signals = {
        "help": Signal(role="objective", model="reward", critic=Engine()),
        "harm": Signal(role="constraint", model="cost", threshold=0.0, critic=Engine()),
    }
    bounds = Alarms(pinned_steps=3, kl_per_token=0.5, length_ratio=2.0, truncated_share=0.5, over=2)
    return RLHF(steps=9, signals=signals, multipliers=Multipliers(**multipliers), alarms=bounds)


def steps(count, price=1.0, **last):
    """Quiet steps; the last two have other metrics."""
    quiet = {"kl": 1.0, "response_length": 20.0, "truncated_share": 0.2}
    found = [{"multipliers": {"harm": price}, "metrics": dict(quiet)} for _ in range(count)]
    for step in found[-2:]:
        step["metrics"] |= last
    return found


def test_quiet_numbers_are_no_alarm():
    assert alarms(config(), steps(6)) == {}
    assert alarms(config(), []) == {}


@pytest.mark.parametrize(
    ("last", "name", "words"),
    [
        ({"kl": 12.0}, "kl", "the policy is 0.60 nats a token from the reference"),
        ({"response_length": 41.0}, "length", "grown from 20 to 41 tokens"),
        ({"response_length": 9.0}, "length", "shrunk from 20 to 9 tokens"),
        ({"truncated_share": 0.6}, "truncated", "60% of the responses are cut off at max_new_tokens, 20% were"),
    ],
)
def test_a_drift_is_named(last, name, words):
    (alarm,) = alarms(config(), steps(6, **last)).items()
    assert alarm[0] == name
    assert words in alarm[1]
    assert alarms(config(), steps(2, **last)) == {}  # there is nothing yet to compare with


@pytest.mark.parametrize("last", [{"kl": 9.0}, {"response_length": 39.0}, {"truncated_share": 0.45}])
def test_within_the_bounds_there_is_no_alarm(last):
    assert alarms(config(), steps(6, **last)) == {}


def test_a_multiplier_at_its_maximum():
    pinned = steps(3, price=5.0)
    assert "at its maximum, 5, for 3 steps" in alarms(config(), pinned)["harm/pinned"]
    assert alarms(config(), pinned[:2]) == {}
    assert alarms(config(), [*steps(1, price=4.9), *pinned[:2]]) == {}
    assert alarms(config(rule="fixed", lambda_init=5.0), pinned) == {}
