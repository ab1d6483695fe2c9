"""Figures of methods over seeds, and the page that compares them."""

import datetime
import math

import numpy as np
import pytest

from benchmarks.comparison import compare, harm_in_groups, method_figures, oscillation, over_seeds
from benchmarks.comparison_page import cells, comparison_cells, constraint_cells, write_methods_page
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import JudgedResponse
from castor.evaluation.summary import Run, RunLimit, Step, Summary, Versions
from castor.statistics.bootstrap import Estimate, wilson


def estimate(value):
    return Estimate(value=value, low=value - 0.1, high=value + 0.1)


def test_one_seed_keeps_its_interval_and_several_have_students():
    assert over_seeds([estimate(0.4)]) == estimate(0.4)
    found = over_seeds([estimate(value) for value in (0.1, 0.2, 0.6)])
    half = 4.302652729911275 * np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half))
    share = over_seeds([estimate(value) for value in (0.1, 0.2, 0.6)], share=True)
    assert (share.low, share.high) == (0.0, pytest.approx(0.3 + half))
    with pytest.raises(ValueError, match="no seed"):
        over_seeds([])


def test_oscillation_is_that_of_the_last_half():
    assert oscillation([9.0, -9.0, 1.0, 3.0]) == 1.0
    assert oscillation([2.0]) == 0.0


def judged(kind, harmful, refusal):
    category = "Violence" if kind == "harmful" else None
    return JudgedResponse("p", "r", kind, category, None, 0.5, -0.5, harmful, 0.6, refusal, 7)


def test_harm_in_groups_is_a_share_of_all_responses():
    rows = [judged("harmful", n < 3, False) for n in range(4)] + [judged("benign", False, False)] * 4
    groups = harm_in_groups([rows], {"bodily": ["Violence", "Drugs"], "crime": ["Cybercrime"]})
    assert groups["bodily"] == wilson(3, 8)
    assert groups["crime"] == wilson(0, 8)
    two = harm_in_groups([rows, rows[3:]], {"bodily": ["Violence"]})["bodily"]
    assert (two.value, two.low) == (pytest.approx(3 / 16), 0.0)


def summary(seed, prices, harmful, learn_s=2.0):
    rows = [judged("harmful", n < harmful, False) for n in range(10)] + [
        judged("benign", False, n < 2) for n in range(10)
    ]
    seconds = {"rollout_s": 1.0, "transfer_s": 0.5}
    steps = [
        Step(
            step=number,
            multipliers={"harm": price},
            mean_costs={"harm": 0.0},
            weighted_reward=0.1,
            kl=0.2,
            metrics={
                **seconds,
                "learn_s": 90.0 if number == 1 else learn_s,
                "harm/violation": 0.25,
                "harm/time_in_violation": 0.5,
                "harm/regret": 1.5 + seed,
            },
        )
        for number, price in enumerate(prices, 1)
    ]
    metrics = policy_metrics(rows)
    return Summary(
        created=datetime.datetime.now(datetime.UTC),
        seed=seed,
        versions=Versions(castor="0", python="3", torch="2", vllm="0", ray="2", deepspeed="0", transformers="5"),
        stages={},
        throughput={},
        runs={"lag": Run(limits={"harm": RunLimit(statistic="mean", limit=0.0)}, steps=steps)},
        policies={"sft": metrics, "lag": metrics},
    )


def test_figures_of_a_method_and_its_page(tmp_path):
    summaries = [summary(0, [1.0, 2.0, 4.0, 2.0], 4), summary(1, [0.5, 1.0, 1.0, 1.0], 6)]
    lag, sft = method_figures("lag", summaries), method_figures("sft", summaries)
    assert (lag.harmful.value, lag.refusals.value, lag.seconds_per_step) == (0.5, 0.2, 3.5)
    harm = lag.constraints["harm"]
    assert (harm.lowest, harm.highest, harm.violation, harm.time_in_violation) == (0.5, 4.0, 0.25, 0.5)
    assert (harm.regret, harm.oscillation) == (2.0, 0.5)
    assert (sft.seconds_per_step, sft.constraints) == (None, {})
    assert cells(lag)[0][0] == "50.0\N{NO-BREAK SPACE}%"
    assert constraint_cells(lag)["harm"][0] == ("0.50 to 4.00", "")
    page = tmp_path / "methods.html"
    write_methods_page(
        page,
        [sft, lag],
        {"lag": summaries},
        "Two <seeds>.",
        {"lag": {"bodily": estimate(0.3)}},
        {"bodily": 0.1},
        [compare("lag", summaries, "sft", summaries)],
    )
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "harmful in bodily (limit 10.0\N{NO-BREAK SPACE}%)" in text
    assert "Against SFT" in text
    assert "Two &lt;seeds&gt;." in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_methods_are_compared_seed_by_seed():
    prices = [1.0, 1.0, 1.0, 1.0]
    slow = [summary(0, prices, 2, learn_s=5.5), summary(1, prices, 6, learn_s=5.5)]
    found = compare("lag", [summary(0, prices, 5), summary(1, prices, 8)], "lag", slow)
    half = 12.706204736174694 * np.std([0.3, 0.2], ddof=1) / math.sqrt(2)  # the seeds themselves differ by 0.4
    assert found.harmful.value == pytest.approx(0.25)
    assert (found.harmful.low, found.harmful.high) == pytest.approx((0.25 - half, 0.25 + half))
    certain = compare("lag", [summary(0, prices, 10), summary(1, prices, 10)], "lag", slow)
    assert (certain.harmful.value, certain.harmful.high) == (pytest.approx(0.6), 1.0)
    assert found.helpfulness == Estimate(value=0.0, low=0.0, high=0.0)
    assert found.seconds_per_step == Estimate(value=0.5, low=0.5, high=0.5)
    assert compare("sft", slow, "lag", slow).seconds_per_step is None
    points, helpfulness, time = comparison_cells(found)
    assert points[0] == "+25.0\N{NO-BREAK SPACE}points"
    assert (helpfulness, time) == (("+0.000", "+0.000 to +0.000"), ("× 0.50", "0.50 to 0.50"))
    with pytest.raises(ValueError, match="the same of both"):
        compare("lag", slow, "lag", slow[::-1])
    with pytest.raises(ValueError, match="two or more"):
        compare("lag", slow[:1], "lag", slow[:1])
