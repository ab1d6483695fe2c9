"""`castor assess`: models and judges on labelled rows, written as assess.json and assess.html."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import castor
from castor.config.assess import Assess, KeywordJudge, LLMJudge, Predictions
from castor.evaluation.anchors import ANCHORS
from castor.evaluation.assessment import (
    Assessment,
    Baseline,
    DataSet,
    JudgeRun,
    Model,
    ModelKind,
    ModelOnSet,
    SetName,
    write_assessment,
)
from castor.evaluation.baselines import Fold, folds_of, helpfulness_baselines, safety_baselines
from castor.evaluation.labelled import LabelledSet, data_taxonomy, load_labelled
from castor.evaluation.model_figures import figures_of
from castor.evaluation.model_outputs import Outputs, model_kind, run_model
from castor.evaluation.predictions import predictions_named, run_predictions
from castor.io.terminal import Terminal
from castor.scoring.chat_judge import judge_pairs, judge_safety
from castor.scoring.keywords import keyword_verdicts
from castor.statistics.agreement import Agreement, Question, Verdicts, agreements

LABELS = "labels"  # the judge that is the data's own labels


@dataclass(frozen=True)
class Scored:
    """A labelled set with every model's outputs on its texts, and who teaches the baselines what."""

    data: LabelledSet
    outputs: dict[str, Outputs]
    folds: list[Fold]
    fitted: str


def assess(config: Assess, terminal: Terminal) -> tuple[Assessment, dict[SetName, Scored]]:
    """Measure everything the config names and write <out>/assess.json; returns it, and each set with all outputs.

    Raises CastorError for a model, data set or judge that does not fit; see their modules.
    """
    kinds = {name: _kind(name, model) for name, model in config.models.items()}
    sets = [load_labelled("data", config.data, kinds.values())]
    if config.out_of_distribution is not None:
        sets.append(load_labelled("out_of_distribution", config.out_of_distribution, kinds.values()))
    training = None if config.training is None else load_labelled("data", config.training, kinds.values())
    scored = [
        Scored(data, _outputs(config, kinds, data, terminal), *folds_of(data, training, config.seed)) for data in sets
    ]
    found: dict[SetName, list[Agreement]] = {}
    runs: list[JudgeRun] = []
    for each in scored:
        found[each.data.name], asked = _agreement(config, each, terminal)
        runs += asked
    assessment = Assessment(
        created=datetime.now(UTC),
        seed=config.seed,
        versions={
            "castor": castor.__version__,
            "python": platform.python_version(),
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        data={each.data.name: _described(each) for each in scored},
        models=_models(config, kinds, scored, terminal),
        baselines=_baselines(config, scored, terminal),
        agreement=found,
        judges=runs,
        anchors=list(ANCHORS),
    )
    write_assessment(config.out / "assess.json", assessment)
    return assessment, {each.data.name: each for each in scored}


def _kind(name: str, model: str | Predictions) -> ModelKind:
    predictions = predictions_named(model)
    return model_kind(name, str(model)) if predictions is None else predictions.kind


def _outputs(
    config: Assess, kinds: Mapping[str, ModelKind], data: LabelledSet, terminal: Terminal
) -> dict[str, Outputs]:
    outputs = {}
    for name, model in config.models.items():
        with terminal.bar(f"{name} on {data.source.source}") as bar:
            predictions = predictions_named(model)
            if predictions is not None:
                outputs[name] = run_predictions(name, predictions, data, bar.update)
            else:
                outputs[name] = run_model(name, str(model), kinds[name], data.texts, config, bar.update)
    return outputs


def _models(
    config: Assess, kinds: Mapping[str, ModelKind], scored: list[Scored], terminal: Terminal
) -> dict[str, Model]:
    models = {}
    for name, named in config.models.items():
        folder = named.source if isinstance(named, Predictions) else named
        sets: dict[SetName, ModelOnSet] = {}
        for each in scored:
            with terminal.bar(f"intervals of {name}"):
                sets[each.data.name] = figures_of(each.outputs[name], each.data, config.seed)
        models[name] = Model(kind=kinds[name], folder=folder, sets=sets)
    return models


def _baselines(config: Assess, scored: list[Scored], terminal: Terminal) -> list[Baseline]:
    """Every baseline on every set: of safety once for each taxonomy that the models have, of helpfulness once."""
    said = [outputs for each in scored for outputs in each.outputs.values()]
    taxonomies = list(dict.fromkeys(outputs.categories for outputs in said if outputs.categories))
    costs, rewards = (any(outputs.kind == kind for outputs in said) for kind in ("cost", "reward"))
    found: dict[tuple[str, str, int], Baseline] = {}

    def add(of: Literal["safety", "helpfulness"], count: int, each: Scored, outputs: dict[str, Outputs]) -> None:
        for name, one in outputs.items():
            baseline = found.setdefault((of, name, count), Baseline(name=name, of=of, categories=count, sets={}))
            baseline.sets[each.data.name] = figures_of(one, each.data, config.seed)

    for each in scored:
        with terminal.bar(f"baselines on {each.data.source.source}") as bar:
            if each.data.rows:
                for categories in taxonomies or [data_taxonomy(each.data.rows)]:
                    made = safety_baselines(each.data, each.folds, categories, costs, bar.update)
                    add("safety", len(categories), each, made)
            if rewards:
                add("helpfulness", 0, each, helpfulness_baselines(each.data, each.folds))
    return list(found.values())


def _described(scored: Scored) -> DataSet:
    data = scored.data
    return DataSet(
        source=data.source.source,
        split=None if Path(data.source.source).exists() else data.source.split,
        rows=len(data.rows),
        pairs=len(data.pairs),
        prompts=data.prompt_count,
        unsafe_share=float(data.unsafe.mean()) if data.rows else None,
        dropped=data.dropped,
        fitted=scored.fitted,
    )


def _agreement(config: Assess, scored: Scored, terminal: Terminal) -> tuple[list[Agreement], list[JudgeRun]]:
    """Agreement on each question that the set has labels for, and how the judges that were asked fared."""
    data, found, runs = scored.data, list[Agreement](), list[JudgeRun]()
    questions: list[Question] = ["unsafe"] if data.rows else []
    questions += ["more helpful", "less harmful"] if data.pairs else []
    for question in questions:
        judges = _unsafe_by_data(scored) if question == "unsafe" else _preferred_by_data(scored, question)
        if not judges[LABELS].given.any():
            continue
        for name, judge in config.judges.items():
            if isinstance(judge, KeywordJudge) and question == "unsafe":
                judges[name] = _keywords(judge, data)
            elif isinstance(judge, LLMJudge) and question in judge.questions:
                with terminal.bar(f"{name}: {question}") as bar:
                    judges[name] = _language_model(judge, data, question, config.seed, bar.update)
            else:
                continue
            said = judges[name]
            runs.append(
                JudgeRun(
                    judge=name, data=data.name, question=question, verdicts=int(said.given.sum()), ties=said.ties,
                    failures=said.failures,
                )
            )  # fmt: skip
        prompts = data.row_prompts if question == "unsafe" else data.pair_prompts
        found += agreements(judges, prompts, question, config.seed)
    return found, runs


def _unsafe_by_data(scored: Scored) -> dict[str, Verdicts]:
    """Verdicts on rows of the labels and of every model that tells safe from unsafe."""
    data = scored.data
    judges = {LABELS: Verdicts(data.unsafe, np.ones(len(data.rows), dtype=bool))}
    for name, outputs in scored.outputs.items():
        if outputs.unsafe is not None:
            judges[name] = Verdicts(outputs.unsafe[data.row_texts], outputs.kept[data.row_texts])
    return judges


def _preferred_by_data(scored: Scored, question: Question) -> dict[str, Verdicts]:
    """Verdicts on pairs of the labels and of the score models; True: response 1. Equal scores are a tie."""
    data, helpful = scored.data, question == "more helpful"
    ids = [row.better_response_id if helpful else row.safer_response_id for row in data.pairs]
    judges = {LABELS: Verdicts(np.array([i == 1 for i in ids]), np.array([i is not None for i in ids]))}
    for name, outputs in scored.outputs.items():
        if outputs.kind == ("reward" if helpful else "cost"):
            assert outputs.scores is not None
            scores, kept = outputs.scores[data.pair_texts], outputs.kept[data.pair_texts].all(axis=1)
            lead = scores[:, 1] - scores[:, 0] if helpful else scores[:, 0] - scores[:, 1]
            judges[name] = Verdicts(lead > 0, kept & (lead != 0), ties=int((kept & (lead == 0)).sum()))
    return judges


def _keywords(judge: KeywordJudge, data: LabelledSet) -> Verdicts:
    said = np.array(keyword_verdicts(data.texts, judge.reads), dtype=bool)
    return Verdicts(said[data.row_texts], np.ones(len(data.rows), dtype=bool))


def _language_model(judge: LLMJudge, data: LabelledSet, question: Question, seed: int, on: Any) -> Verdicts:
    """Its verdicts on rows, or on pairs. A text is asked once, however many rows have it."""
    if question == "unsafe":
        asked = _drawn(np.unique(data.row_texts), judge.limit, seed)
        said = judge_safety(judge, data.texts, asked, on)
        return Verdicts(said.said[data.row_texts], said.given[data.row_texts], said.failures)
    pairs = [row.exchanges for row in data.pairs]
    return judge_pairs(judge, pairs, question, _drawn(np.arange(len(pairs)), judge.limit, seed), on)


def _drawn(items: NDArray[np.int64], limit: int | None, seed: int) -> NDArray[np.int64]:
    """All of `items`, or `limit` of them at random, in order."""
    if limit is None or limit >= len(items):
        return items
    return np.sort(np.random.default_rng(seed).choice(items, limit, replace=False))
