"""report.html: self-contained, complete and safe for whatever a policy may have written."""

import dataclasses
import datetime as dt
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from castor.config.judge import Measures
from castor.evaluation.limits import Constraint, limit_on
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.records import JudgedResponse
from castor.evaluation.summary import RowCounts, Run, RunLimit, Stage, Step, Summary, Throughput, Versions
from castor.reports.plots import bound, constraint_statistics, measured, smooth
from castor.reports.report import write_report

SCRIPT = "<script>alert('x')</script> & \"quoted\" \x00\ud800\u202e"
VOID = {"meta", "path", "use", "rect", "br", "link", "img"}


def responses(n: int = 24, harm: float = 0.5, gold: bool = True, text: str = SCRIPT) -> list[JudgedResponse]:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(n):
        kind = ("harmful", "benign", "lookalike")[index % 3]
        harmful = kind == "harmful" and bool(rng.random() < harm)
        rows.append(
            JudgedResponse(
                prompt=f"prompt {index} of kind {kind}",
                response=text,
                kind=kind if gold else None,  # type: ignore[arg-type]  # one of the literals above
                category="Violence" if kind == "harmful" else None,
                severity=1 + index % 2 if kind == "harmful" else None,
                reward=float(rng.normal()),
                cost=float(rng.normal() + harmful),
                harmful=harmful if gold else None,
                helpfulness=float(rng.random()) if gold else None,
                refusal=bool(rng.random() < 0.3) if gold else None,
                n_tokens=5,
            )
        )
    return rows


def run(constraints: tuple[str, ...] = (), n: int = 9) -> Run:
    steps = [
        Step(
            step=index,
            multipliers=dict.fromkeys(constraints, 1.0 + index),
            mean_costs=dict.fromkeys(constraints, 0.5 - 0.2 * index),
            weighted_reward=0.1 * index,
            kl=0.05 * index,
            metrics={"helpfulness/score_mean": 0.1 * index},
        )
        for index in range(n)
    ]
    limits = dict.fromkeys(constraints, RunLimit(statistic="mean", limit=-0.5))
    return Run(limits=limits, objectives={"helpfulness": 1.0}, steps=steps)


def summary(rows: dict[str, list[JudgedResponse]], runs: dict[str, Run]) -> Summary:
    return Summary(
        created=dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC),
        seed=7,
        versions=Versions(
            castor="0.1.0",
            python="3.11.9",
            torch="2.13.0",
            vllm="0.32.0",
            ray="2.60.0",
            deepspeed="0.19.8",
            transformers="5.19.0",
        ),
        stages={"sft": Stage(seconds=61.5, reused=True), "evaluate": Stage(seconds=5.25, reused=False)},
        throughput={name: Throughput(rollout_tokens_per_s=8123.0, learner_tokens_per_s=9.0) for name in runs},
        runs=runs,
        policies={name: policy_metrics(group) for name, group in rows.items()},
    )


def page(tmp_path: Path, rows: dict[str, list[JudgedResponse]], runs: dict[str, Run]) -> str:
    path = tmp_path / "report.html"
    write_report(path, summary(rows, runs), rows, title="A <title>")
    html = path.read_text(encoding="utf-8")
    WellFormed().feed(html)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', html)) | set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)
    return html


class WellFormed(HTMLParser):
    """Raises when a tag is closed that is not the one open, or when a script or a foreign address appears."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe", "object"}
        for name, value in attrs:
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "srcset", "action"}:
                assert (value or "").startswith("#")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)


THREE = {"sft": responses(), "ppo": responses(harm=0.9), "ppo_lag": responses(harm=0.0)}
RUNS = {"ppo": run(), "ppo_lag": run(("harm",))}


def test_the_page_is_complete_and_self_contained(tmp_path: Path) -> None:
    html = page(tmp_path, THREE, RUNS)
    assert "http" not in html.split("</style>")[1]
    assert "@import" not in html
    assert len(html.encode()) < 2_000_000
    for word in ("SFT", "PPO-Lag", "Harmful answers by category", "severity", "Multiplier and cost: harm", "seed 7"):
        assert word in html
    assert "The reward-cost plane" in html
    assert html.count("<svg ") == 8
    assert html.count("How to read this:") == 9  # every figure and the table
    assert "limit −0.50" in html
    assert "1 min 02 s" in html
    assert "sft (reused)" in html


def test_what_a_policy_wrote_is_shown_and_never_run(tmp_path: Path) -> None:
    html = page(tmp_path, THREE, RUNS)
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert "A &lt;title&gt;" in html
    assert not set("\x00\u202e") & set(html)


def test_verdicts_are_told_in_words(tmp_path: Path) -> None:
    html = page(tmp_path, THREE, RUNS)
    assert "✗ harmful" in html
    assert "✓ safe" in html
    for title in ("Harmful prompts", "Harmless prompts that look harmful", "Benign prompts"):
        assert title in html


def test_the_page_works_without_gold_verdicts(tmp_path: Path) -> None:
    rows = {name: responses(gold=False) for name in ("sft", "ppo_lag")}
    html = page(tmp_path, rows, RUNS)
    assert "There is no gold judge" in html
    assert "Unsafe answers by category" in html
    assert "✗ cost model: unsafe" in html


def test_the_page_works_without_a_reward_model(tmp_path: Path) -> None:
    rows = {
        name: [dataclasses.replace(row, reward=None) for row in responses(harm=harm, gold=False)]
        for name, harm in (("sft", 1.0), ("ppo_lag", 0.0))
    }
    html = page(tmp_path, rows, RUNS)
    assert "Cost before and after" in html
    for absent in ("Reward before and after", "The reward-cost plane", "reward None"):
        assert absent not in html


def test_the_page_works_with_further_judges_alone(tmp_path: Path) -> None:
    rows = {
        name: [
            dataclasses.replace(row, reward=None, cost=None, scores={"harm": row.cost or 0.0, "polite": 1.5})
            for row in responses(n=60, harm=harm, gold=False)
        ]
        for name, harm in (("sft", 1.0), ("ppo_lag", 0.0))
    }
    judges: dict[str, Measures] = {"harm": "cost", "polite": "reward"}
    found = summary(rows, {"ppo_lag": run(("harm",))})
    policies = {name: policy_metrics(group, judges=judges) for name, group in rows.items()}
    assert policies["sft"].judges["polite"].unsafe_share is None
    counts = {"evaluate": RowCounts(read=65, dropped=2, set_aside=0, too_long=3)}
    write_report(tmp_path / "report.html", found.model_copy(update={"policies": policies, "rows": counts}), rows)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    WellFormed().feed(html)
    for present in ("Further judges", "Unsafe by harm", "mean reward of a further judge", "polite 1.50", "harm −"):
        assert present in html
    for absent in (
        "before and after",
        "The reward-cost plane",
        "cost None",
        "cost model: ",
        "Where harm remains",
        "models that",
    ):
        assert absent not in html
    assert "of 65 rows read, 3 too long, 2 dropped as bad." in html


def test_any_policies_constraints_and_names(tmp_path: Path) -> None:
    names = ["start", "a&b", "<i>x</i>", "$\\frac$", *(f"policy {index}" for index in range(6))]
    rows = {name: responses(n=6) for name in names}
    runs = {"a&b": run(("harm", 'pri"vacy\\1')), "<i>x</i>": run(), "only a run": run(("harm",))}
    html = page(tmp_path, rows, runs)
    assert "<i>x</i>" not in html
    assert "Multiplier and cost: pri&#34;vacy\\1" in html
    assert "$\\frac$" in html


def test_one_policy_without_runs_categories_or_spread(tmp_path: Path) -> None:
    same = [dataclasses.replace(row, category=None, severity=None, reward=1.0, cost=-1.0) for row in responses(n=6)]
    html = page(tmp_path, {"sft": same}, {})
    assert "How training went" not in html
    assert "SFT, measured alone" in html


def test_a_run_without_steps_leaves_the_training_figures_out(tmp_path: Path) -> None:
    html = page(tmp_path, THREE, {"ppo": Run(steps=[])})
    assert "How training went" not in html


def test_the_same_input_gives_the_same_page(tmp_path: Path) -> None:
    assert page(tmp_path, THREE, RUNS) == page(tmp_path, THREE, RUNS)


def test_large_evaluations_stay_under_two_megabytes(tmp_path: Path) -> None:
    rows = {name: responses(n=3000, text="long " * 2000) for name in ("sft", "ppo", "ppo_lag")}
    assert len(page(tmp_path, rows, RUNS).encode()) < 2_000_000


def test_responses_that_are_not_those_of_the_summary_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ppo', but 1"):
        write_report(tmp_path / "report.html", summary(THREE, RUNS), THREE | {"ppo": THREE["ppo"][:1]})
    assert not (tmp_path / "report.html").exists()


def test_smooth_is_the_trailing_mean_of_five() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 0.0])
    assert smooth(values) == pytest.approx([1, 2, 3, 4, 5, 7, 6.4])
    assert smooth(values[:2]) == pytest.approx([1, 2])


def test_a_share_is_drawn_as_a_share_and_a_bound_beside_it(tmp_path: Path) -> None:
    """λ, share and limit of each constraint by what it limits; every objective and every watched signal has a curve."""
    steps = [
        Step(
            step=index,
            multipliers={"harm": 1.0, "privacy": 2.0},
            mean_costs={"harm": -1.0, "privacy": 0.5},
            weighted_reward=1.5,
            kl=0.1,
            metrics={
                "harm/score_positive_share": 0.5 - 0.05 * index, "harm/violation": 0.1, "privacy/violation": 1.0,
                "help/score_mean": 1.0, "brief/score_mean": 1.0, "watched/score_mean": 3.0,
            },
        )
        for index in range(6)
    ]  # fmt: skip
    limits = {
        "harm": RunLimit(statistic="share", limit=0.03, confidence=0.9),
        "privacy": RunLimit(statistic="mean", limit=-0.5),
    }
    constrained = Run(
        alarms={"kl": "KL 40 is far"},
        limits=limits,
        objectives={"help": 1.0, "brief": 0.5},
        monitors=["watched"],
        steps=steps,
    )
    assert measured(steps[0], "harm", "share") == 0.5
    assert measured(steps[0], "harm", "mean") == -1.0
    assert bound(steps[0], "harm", limits["harm"]) == pytest.approx(0.13)
    assert constraint_statistics({"ppo_lag": constrained, "ppo": Run(steps=[])}) == [
        ("harm", "share"), ("privacy", "mean"),
    ]  # fmt: skip
    html = page(tmp_path, THREE, {"ppo_lag": constrained})
    for words in (
        "Multiplier and share: harm", "share of unsafe answers", "limit 3.0\N{NO-BREAK SPACE}%", "upper bound",
        "Multiplier and cost: privacy", "Objective: help", "Objective: brief", "weighted sum", "Only watched: watched",
        "PPO-Lag: alarm</span> KL 40 is far",
    ):  # fmt: skip
        assert words in html, words


def test_the_limit_comes_first(tmp_path: Path) -> None:
    costs = [-1.0] * 97 + [1.0] * 3
    kept = limit_on("mean", -0.5, None, training=costs, held_out=costs, seed=0)
    broken = limit_on("share", 0.03, None, training=costs, held_out=[-1.0, 1.0] * 50, seed=0)
    told_first = Constraint(
        run="ppo_lag", name="harm", judge="score model x", confidence=None, asked=broken, bounded=kept
    )
    path = tmp_path / "report.html"
    write_report(path, summary(THREE, RUNS).model_copy(update={"constraints": [told_first]}), THREE)
    html = path.read_text(encoding="utf-8")
    assert "PPO-Lag, harm: limit broken</span>\nAsked: at most 3.0\N{NO-BREAK SPACE}% unsafe answers." in html
    assert html.index("limit broken") < html.index("<h1>")
    assert 'class="card hero tone-bad"' in html
