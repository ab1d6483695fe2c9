"""What a signal may be judged by, and in which words anything else is refused."""

import pytest
from pydantic import ValidationError

from castor.config.rlhf import RLHF
from castor.config.signal import Signal
from castor.dry_run.placement import placement
from tests.plans import plan_of

FUNCTION = {"role": "constraint", "function": "my_scores:score", "threshold": 0.0}
REMOTE = {"role": "constraint", "http": {"url": "http://scores:8000/v1/score"}, "threshold": 0.0}
REWARD = {"role": "objective", "model": "stage:reward"}


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        ({"role": "objective"}, "exactly one of model, function and http, and has none"),
        ({**FUNCTION, "model": "stage:cost"}, "and has model and function"),
        ({**FUNCTION, "function": "score"}, "not of the form module:function"),
        ({**FUNCTION, "classifier": {}}, "classifier belongs to a model, and the judge has function instead"),
        ({**REMOTE, "template": "pku"}, "template belongs to a model, and the judge has http instead"),
        ({**REMOTE, "http": {"url": "scores:8000"}}, "url"),
        (
            {"role": "constraint", "function": "my_scores:score", "unsafe_share": 0.1},
            "function my_scores:score does not say the mean cost .*statistic share",
        ),
    ],
)
def test_a_signal_has_one_judge(signal, message):
    with pytest.raises(ValidationError, match=message):
        Signal.model_validate(signal)


def test_a_judge_of_texts_can_be_limited_by_its_share():
    Signal(role="constraint", function="my_scores:score", unsafe_share=0.1, constraint={"statistic": "share"})


@pytest.mark.parametrize("signal", [FUNCTION, REMOTE])
def test_gae_needs_something_to_start_the_critic_from(signal):
    def run(**options):
        signals = {"help": REWARD, "harm": {**signal, **options.pop("more", {})}}
        return RLHF.model_validate({"steps": 1, "signals": signals, "multipliers": {}, **options})

    with pytest.raises(ValidationError, match=r"'harm' is judged by the .*nothing to start its critic from: give it a"):
        run()
    assert run(more={"critic_model": "stage:sft"}).signals["harm"].critic_start == "stage:sft"
    free = run(advantage={"estimator": "leave_one_out"}, samples_per_prompt=2)
    assert not free.has_critic("harm")
    assert not run(more={"multiplier": {"rule": "none"}}).has_critic("harm")  # watched only


def test_nothing_is_learned_from_a_monitor():
    signals = {"help": REWARD, "gold": {"role": "monitor", "function": "judge:score"}}
    run = RLHF.model_validate({"steps": 1, "signals": signals})
    assert (run.has_critic("gold"), run.trains_policy("gold")) == (False, False)
    assert (list(run.objectives), list(run.constraints), run.kl_share("help")) == (["help"], [], 1.0)


def test_every_rule_and_statistic_takes_every_judge():
    rules = {"sgd_log": {}, "pid": {"rule": "pid"}, "projected": {"rule": "projected"}, "fixed": {"rule": "fixed"}}
    signals = {
        f"{kind}-{name}": {
            **signal,
            "multiplier": {**rule},
            "constraint": {"confidence": 0.95},
            "critic_model": "stage:sft",
        }
        for name, rule in rules.items()
        for kind, signal in (("function", FUNCTION), ("http", REMOTE))
    }
    run = RLHF.model_validate({"steps": 1, "signals": {"help": REWARD, **signals}})
    assert [run.multiplier(name).rule for name in run.constraints] == [r for r in rules for _ in range(2)]


def test_the_plan_counts_judge_and_critic_by_themselves():
    def memory(**harm):
        values = {
            "model": {},
            "sft": {"data": {}},
            "reward": {"data": {}},
            "cost": {"data": {}},
            "rlhf": {"lag": {"steps": 1, "multipliers": {}, "signals": {"help": REWARD, "harm": harm}}},
        }
        actors = placement(plan_of(values))["lag"]
        (found,) = (each for each in actors if each.name == "signal-harm")
        return found

    model = memory(role="constraint", model="stage:cost", threshold=0.0)
    own = memory(role="constraint", model="stage:cost", threshold=0.0, critic_model="stage:sft")
    function = memory(**FUNCTION, critic_model="stage:sft")
    watched = memory(**REMOTE, multiplier={"rule": "none"})
    assert own.memory == model.memory
    assert (function.memory.frozen, function.memory.weights) == (0, model.memory.weights)
    assert watched.memory.model == 0
    assert "function, and its critic" in function.work
    assert "remote scorer" in watched.work
