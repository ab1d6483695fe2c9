"""Model cards: what a run knows is in them, and what it does not know is left out."""

import dataclasses
import math

import pytest
from huggingface_hub import ModelCard

from castor.config.data import DataSource
from castor.evaluation.metrics import policy_metrics
from castor.evaluation.summary import RowCounts
from castor.reports.model_card import ModelFacts, model_card, with_comparison
from tests.unit.reports.test_report import responses

FACTS = ModelFacts(
    stage="cost",
    kind="cost model",
    run="mine",
    base="org/base-1b",
    start="stage:sft",
    template="pku",
    seed=7,
    data=[(DataSource(source="PKU-SafeRLHF"), 1200), (DataSource(source="/home/me/secret/rows.jsonl"), 34)],
    rows=RowCounts(read=1250, dropped=13, set_aside=0, too_long=3),
    judges={},
    figures={"accuracy": 0.8125, "loss": math.nan, "training_samples": 1100, "validation_samples": 134, "too_long": 3},
)


def test_a_card_says_what_the_run_knows():
    card = ModelCard(model_card(FACTS))
    assert card.data.to_dict() == {
        "base_model": "org/base-1b",
        "datasets": ["PKU-Alignment/PKU-SafeRLHF"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["castor", "safe-rlhf", "cost-model"],
    }
    text = " ".join(card.text.split())
    for said in (
        "# mine: cost A cost model that Castor",
        "[org/base-1b](https://huggingface.co/org/base-1b); it was trained from stage `sft` of the run.",
        "at `9421ffafec3f` | train | 1,200 |",
        "| `rows.jsonl` | | 34 |",
        "1,100 samples were trained on and 134 held out, split by prompt.",
        "Left out of 1,250 rows read: 3 too long, 13 dropped as bad.",
        "| accuracy | 0.8125 |",
        "PKU-Alignment/PKU-SafeRLHF): `cc-by-nc-4.0`",
        "- `rows.jsonl`: see the data's own licence",
        "castor export MODEL FOLDER",
    ):
        assert said in text
    assert "secret" not in text  # a path of this machine is nobody's business
    assert "nan" not in text
    assert "| training samples" not in text


@pytest.mark.parametrize("kind", ["language model", "reward model", "cost model", "moderation model"])
def test_a_card_of_nothing_known(kind):
    facts = dataclasses.replace(FACTS, kind=kind, base=None, start=None, data=[], rows=None, figures={})
    card = ModelCard(model_card(facts))
    assert "Its weights are random" in card.text
    assert "## Figures" not in card.text
    assert card.data.base_model is None
    headings = [line for line in card.text.splitlines() if line.startswith("## ")]
    assert headings == [f"## {name}" for name in ("Intended use", "How to read it", "Data", "Limits", "Licence")]


def test_a_comparison_takes_the_place_of_the_earlier_one_and_of_nothing_else():
    facts = dataclasses.replace(FACTS, kind="language model", judges={"harm": "constraint, judged by `stage:cost`"})
    first, second = ({"sft": policy_metrics(responses(n)), "ppo_lag": policy_metrics(responses(n))} for n in (24, 30))
    card = model_card(facts)
    once = with_comparison(card, "ppo_lag", first)
    assert once.startswith(card.rstrip())
    assert "Every policy answered the same 24 prompts" in once
    assert "PPO-Lag (this model) |" in once
    twice = with_comparison(once + "\n## Mine\n\nWritten by hand.\n", "ppo_lag", second)
    assert twice.startswith(card.rstrip())
    assert twice.count("Every policy answered") == twice.count("same 30 prompts") == 1
    assert twice.rstrip().endswith("## Mine\n\nWritten by hand.")
