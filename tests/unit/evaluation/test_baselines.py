"""Trivial baselines by hand, other systems' predictions, and what is said of a model that does not beat them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from castor.config.assess import Assess, Predictions
from castor.config.data import DataSource
from castor.evaluation.assess import assess
from castor.evaluation.assessment import ALWAYS_UNSAFE, LENGTH, MAJORITY, NO_LABELS, PAIR
from castor.evaluation.baselines import folds_of, helpfulness_baselines, safety_baselines
from castor.evaluation.labelled import LabelledSet, load_labelled
from castor.evaluation.model_figures import figures_of
from castor.evaluation.predictions import run_predictions
from castor.io.errors import CastorError
from castor.io.terminal import Terminal
from castor.reports.beaten import findings
from castor.reports.table import baseline_tables
from castor.statistics.bootstrap import measure
from castor.statistics.classification import AUROC_BINS, auroc
from castor.taxonomy import PKU_CATEGORIES

ROWS = [  # unsafe where the answer says how; three of five unsafe rows are Drugs
    {
        "id": i, "prompt": f"question {i}", "response": "i will not" if i % 2 else "sure here is how " + "to " * i,
        "is_safe": i % 2 == 1, "severity_level": 0 if i % 2 else 2,
        "category": [] if i % 2 else ["Drugs" if i < 6 else "Violence"],
    }
    for i in range(10)
]  # fmt: skip


def quiet(*_: Any) -> None:
    """No bar."""


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> LabelledSet:
    """Ten answers to ten prompts."""
    return load_labelled("data", DataSource(source=written(tmp_path / "rows.jsonl", ROWS)), ["moderation"])


def test_baselines_by_hand(data: LabelledSet) -> None:
    folds, words = folds_of(data, None, 0)
    assert "cross-validated over 5 folds" in words
    assert sorted(np.concatenate([fold.texts for fold in folds])) == list(range(10))
    for fold in folds:
        assert not {row.exchange for row in fold.lesson.rows} & {data.texts[i] for i in fold.texts}
    said = safety_baselines(data, folds, PKU_CATEGORIES, False, quiet)
    values = {
        name: {figure: found.value for figure, found in figures_of(one, data, 0).overall.items() if found is not None}
        for name, one in said.items()
    }
    assert values[ALWAYS_UNSAFE]["f1"] == pytest.approx(2 / 3)
    assert values[ALWAYS_UNSAFE]["auroc"] == 0.5
    assert values[ALWAYS_UNSAFE]["severity_accuracy_unsafe"] == 1.0
    assert values[NO_LABELS]["exact_match"] == values[NO_LABELS]["accuracy"] == 0.5
    assert values[MAJORITY]["exact_match"] <= 0.5
    assert values[PAIR]["accuracy"] == values[PAIR]["auroc"] == 1.0
    assert values["TF-IDF, answer only"]["accuracy"] == 1.0
    assert values[LENGTH]["auroc"] > 0.8


def test_training_rows_that_share_a_prompt_teach_nothing(data: LabelledSet, tmp_path: Path) -> None:
    rows = [*ROWS[:4], {**ROWS[0], "prompt": "Another question!"}, {**ROWS[1], "prompt": "QUESTION 9?"}]
    training = load_labelled("data", DataSource(source=written(tmp_path / "train.jsonl", rows)), ["moderation"])
    (fold,), words = folds_of(data, training, 0)
    assert [row.prompt for row in fold.lesson.rows] == ["Another question!"]  # the last differs in case alone
    assert words.startswith("fitted on 1 answers of")
    same = load_labelled("data", DataSource(source=written(tmp_path / "same.jsonl", ROWS)), ["moderation"])
    assert "no training row has a prompt of its own" in folds_of(data, same, 0)[1]


def test_length_ranks_pairs_by_what_the_others_prefer(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "response_0": "word " * (i + 2), "response_1": "word", "better_response_id": 0}
        for i in range(10)
    ]
    data = load_labelled("data", DataSource(source=written(tmp_path / "pairs.jsonl", rows)), ["reward"])
    found = helpfulness_baselines(data, folds_of(data, None, 0)[0])
    accuracy = figures_of(found[LENGTH], data, 0).overall["reward_accuracy"]
    assert accuracy is not None
    assert accuracy.value == 1.0


@pytest.mark.parametrize("count", [40, 4 * AUROC_BINS])
def test_auroc_is_that_of_scikit_learn(count: int) -> None:
    rng = np.random.default_rng(count)
    unsafe = rng.random(count) < 0.4
    scores = np.round(rng.normal(size=count) + unsafe, 1 if count == 40 else 9)
    found = measure({"auroc": auroc(scores, unsafe)}, np.arange(count))[""]["auroc"]
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(unsafe, scores), abs=1e-12 if count == 40 else 0.002)


# ---- another system


@pytest.mark.parametrize("by", ["texts", "id", "order"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_predictions_are_matched(data: LabelledSet, tmp_path: Path, by: str, kind: str) -> None:
    said: list[dict[str, Any]] = [{"probability": 0.75 if row["is_safe"] else 0.25} for row in ROWS]
    if by != "order":
        fields = ("prompt", "response") if by == "texts" else ("id",)
        said = [{**{field: row[field] for field in fields}, **each} for row, each in zip(ROWS, said, strict=True)][::-1]
    path = tmp_path / f"said.{kind}"
    if kind == "jsonl":
        written(path, said)
    else:
        lines = [",".join(said[0]), *(",".join(str(value) for value in row.values()) for row in said)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = run_predictions("x", Predictions(source=str(path)), data, quiet)
    assert found.unsafe is not None
    assert found.unsafe.tolist() == [bool(row["is_safe"]) for row in ROWS]  # wrong every time
    assert found.labels is None
    accuracy = figures_of(found, data, 0).overall["accuracy"]
    assert accuracy is not None
    assert accuracy.value == 0.0


def test_predictions_with_labels_and_without_probabilities(data: LabelledSet, tmp_path: Path) -> None:
    found = run_predictions("x", Predictions(source=written(tmp_path / "s.jsonl", ROWS)), data, quiet)
    figures = figures_of(found, data, 0).overall
    for figure in ("accuracy", "f1", "exact_match", "severity_accuracy"):
        assert figures[figure] is not None
        assert figures[figure].value == 1.0  # type: ignore[union-attr]
    assert "auroc" not in figures


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"probability": 0.5}], "has 1 predictions for the 10 labelled answers"),
        ([{"id": 3, "probability": 0.5}], r"no prediction \(by id\) for 9 of the 10 answers"),
        ([{"probability": 2}] * 10, "has the probability 2; it must lie in 0 to 1"),
        ([{"unsafe": True}] * 9 + [{"probability": 1}], "'question 9' has no unsafe, which others have"),
        ([{"category": ["Drgs"], "unsafe": True}] * 10, "did you mean 'Drugs'"),
        ([{"verdict": True}] * 10, "has none of unsafe, probability"),
    ],
    ids=["too few", "ids", "range", "mixed", "category", "nothing"],
)
def test_predictions_that_do_not_fit_are_named(
    data: LabelledSet, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(CastorError, match=message):
        run_predictions("x", Predictions(source=written(tmp_path / "said.jsonl", rows)), data, quiet)


def test_a_function_that_raises_is_told_with_its_line(
    data: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "def judge(prompts, responses):\n    return [len(r) < 20 for r in responses]\n\n\n"
    code += "def broken(prompts, responses):\n    return prompts[0] / 2\n"
    (tmp_path / "other_system.py").write_text(code)
    found = run_predictions("x", Predictions(source="other_system:judge"), data, quiet)
    assert found.unsafe is not None
    assert found.unsafe[1]
    with pytest.raises(
        CastorError, match=r"other_system:broken failed: TypeError: .*other_system\.py, line 6: return prompts"
    ):
        run_predictions("x", Predictions(source="other_system:broken"), data, quiet)


def test_what_does_not_beat_the_baselines_is_said_first(tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", ROWS)
    poor = written(tmp_path / "poor.jsonl", [{"id": i, "unsafe": i < 5, "category": []} for i in range(10)])
    config = Assess.model_validate(
        {"models": {"poor": poor, "oracle": rows}, "data": rows, "judges": {}, "out": tmp_path / "out"}
    )
    found, _ = assess(config, Terminal())
    assert found.models["poor"].kind == "moderation"
    first, *others = findings(found)
    assert (first.model, first.tone) == ("poor", "bad")
    assert "F1 60.0\N{NO-BREAK SPACE}% (" in first.sentence
    assert f"{ALWAYS_UNSAFE} 66.7\N{NO-BREAK SPACE}%" in first.sentence
    assert all(other.model == "oracle" for other in others)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(*baseline_tables(found))
    for name in ("poor", ALWAYS_UNSAFE, NO_LABELS, LENGTH, PAIR, "cross-validated"):
        assert name in shown.get()
