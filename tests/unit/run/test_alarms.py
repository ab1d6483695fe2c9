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


WATCHING = {
    "gold": Signal(role="monitor", function="judge:score"),
    "second": Signal(role="constraint", function="judge:harm", threshold=0.0, multiplier=Multipliers(rule="none")),
}


def watched(reward, gold, second):
    """Steps of a run with two judges from which nothing is learned."""
    found = steps(len(reward))
    for step, r, g, c in zip(found, reward, gold, second, strict=True):
        step["weighted_reward"], step["multipliers"] = r, {"harm": 0.0, "second": 0.0}
        step["metrics"] |= {"gold/score_mean": g, "second/score_mean": c}
    return found


@pytest.mark.parametrize(
    ("reward", "gold", "second", "named"),
    [
        # of each pair of steps: standard error of the difference sqrt(2 * 0.02 / 2) = 0.141, so 3 of them are 0.424
        ([1.0, 1.2, 9, 1.5, 1.7], [1.0, 1.2, 9, 0.5, 0.7], [0.0, 0.2, 9, 0.5, 0.7], ["gold", "second"]),
        ([1.0, 1.2, 9, 1.5, 1.7], [1.0, 1.2, 9, 1.5, 1.7], [0.5, 0.7, 9, 0.0, 0.2], []),
        ([1.0, 1.2, 9, 1.4, 1.6], [1.0, 1.2, 9, 0.0, 0.2], [0.0, 0.2, 9, 1.0, 1.2], []),  # a rise of 0.4 is too little
        ([1.0, 1.2, 9, 1.5, 1.7], [1.0, 1.2, 9, 0.6, 0.8], [0.0, 0.2, 9, 0.4, 0.6], []),  # so is such a fall
        ([1.0, 1.0, 9, 1.5, 1.5], [1.0, 1.0, 9, 0.9, 0.9], [0.0, 0.0, 9, 0.0, 0.0], ["gold"]),  # without any spread
    ],
)
def test_a_reward_that_rises_while_those_who_only_watch_are_unhappier_is_named(reward, gold, second, named):
    quiet = config()
    rlhf = quiet.model_copy(update={"signals": quiet.signals | WATCHING})
    found = alarms(rlhf, watched(reward, gold, second))
    assert list(found) == [f"{name}/hacking" for name in named]
    assert all("the policy may please the reward model alone" in text for text in found.values())
    if named:
        assert (
            f"risen from {reward[0] / 2 + reward[1] / 2:.2f} to {reward[3] / 2 + reward[4] / 2:.2f}"
            in found["gold/hacking"]
        )


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
