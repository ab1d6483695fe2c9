"""The papers' models on the synthetic corpus, trained and measured: `python -m benchmarks.preference_models`.

Trains configs/preference_models.yaml as `castor pipeline` does (stages that are finished are not run again), scores the
test split, and prints what each model reaches beside what the labels allow: they are noisy, so a perfect judge is not
always right either. Exit code 1 when a target is missed. Intervals are bootstrap intervals over prompts.

Settings are chosen with `--split validation`.
"""

import argparse
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from castor.config.assess import Assess
from castor.config.data import DataSource, SyntheticOptions
from castor.data.rows.load import load_preferences, load_qa
from castor.data.rows.schemas import Exchange, PreferenceRow, QARow
from castor.data.sources.report import RowReport
from castor.evaluation.assessment import ModelKind
from castor.evaluation.labelled import label_vectors
from castor.evaluation.model_outputs import Outputs, run_model
from castor.statistics import classification
from castor.statistics.bootstrap import Estimate, Statistic, measure
from castor.synthetic.annotator import cost_utility
from castor.synthetic.edits import EDITS, flawed_pair
from castor.synthetic.judge import judge
from castor.synthetic.prompts import enumerate_prompts
from castor.taxonomy import PKU_CATEGORIES, Severity

ROOT = Path(__file__).parents[1]
CONFIG = "configs/preference_models.yaml"
FLAWED_PAIRS = 200  # of each flaw


@dataclass(frozen=True)
class Figure:
    """One line of the table; `reached` is held against `target`."""

    what: str
    value: Estimate
    beside: str
    reached: Estimate | None = None
    target: float | None = None

    @property
    def met(self) -> bool:
        """Does the estimate reach the target? True where there is none."""
        return self.target is None or (self.reached is not None and self.reached.value >= self.target)


def main() -> int:
    """Train what is not trained yet, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/preference_models"))
    parser.add_argument("--base", type=Path, help="run folder whose sft model is used instead of training one")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--rows", type=int, default=3000, help="pairs, and QA rows, to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-training", action="store_true", help="measure the models that are there")
    parser.add_argument("overrides", nargs="*", help="e.g. reward.max_steps=1200")
    args = parser.parse_args()
    run_dir = args.run_dir.absolute()
    if not args.no_training:
        train(run_dir, args.base, args.seed, args.overrides)
    figures = [
        *preference_figures(run_dir, args.split, args.rows, args.seed),
        *moderation_figures(run_dir, args.split, args.rows, args.seed),
    ]
    console = Console(width=150)
    console.print(figures_table(figures, args.split))
    console.print(flaws_table(run_dir, args.split, args.seed))
    return 0 if all(figure.met for figure in figures) else 1


def train(run_dir: Path, base: Path | None, seed: int, overrides: list[str]) -> None:
    """`castor pipeline` in a process of its own."""
    settings = [f"run_dir={run_dir}", f"seed={seed}"]
    if base is not None:
        start = base.absolute() / "sft"
        stages = ["reward", "cost", *(f"moderation.{name}" for name in MODERATION)]
        settings += ["model=null", "sft=null", *(f"{stage}.model={start}" for stage in stages)]
    subprocess.run([sys.executable, "-m", "castor", "pipeline", CONFIG, *settings, *overrides], cwd=ROOT, check=True)


MODERATION = {
    "qa": "question and answer",
    "answer_only": "answer only",
    "question_only": "question only",
    "severity": "severity-sensitive",
}


def outputs_of(run_dir: Path, name: str, texts: list[Exchange]) -> Outputs:
    """What the model of a stage says of texts."""
    kind: ModelKind = "reward" if name == "reward" else "cost" if name == "cost" else "moderation"
    source = DataSource()  # Assess describes a whole measurement; only its precision and lengths matter here
    config = Assess(models={name: str(run_dir / name)}, data=source, dtype="float32", max_length=128)
    return run_model(name, str(run_dir / name), kind, texts, config, lambda done, total: None)


# Reward and cost -------------------------------------------------------------------------------------------------


def preference_figures(run_dir: Path, split: str, n: int, seed: int) -> list[Figure]:
    """Accuracy of the reward and cost model on noisy labels, beside that of the gold judge."""
    rows = load_preferences(DataSource(split=split, limit=n), RowReport(), need=("better", "safer", "safe_flags"))
    texts = [exchange for row in rows for exchange in row.exchanges]
    reward, cost = (pair_scores(run_dir, name, texts) for name in ("reward", "cost"))
    verdicts = [judge(text.prompt, text.response) for text in texts]
    helpfulness = np.array([verdict.helpfulness for verdict in verdicts]).reshape(-1, 2)
    harm = np.array([cost_utility(verdict) for verdict in verdicts]).reshape(-1, 2)
    harmful = np.array([verdict.harmful for verdict in verdicts])
    better = np.array([row.better_response_id for row in rows])
    safer = np.array([row.safer_response_id for row in rows])
    unsafe = np.array([not flag for row in rows for flag in (row.is_response_0_safe, row.is_response_1_safe)])
    prompts = prompt_numbers(rows)
    return [
        against_ceiling("reward accuracy", ranks(reward, better), ranks(helpfulness, better), prompts, 0.90, seed),
        against_ceiling("cost ranking accuracy", ranks(-cost, safer), ranks(-harm, safer), prompts, 0.90, seed),
        against_ceiling(
            "cost sign accuracy",
            np.where(unsafe, cost.ravel() > 0, cost.ravel() < 0).astype(np.float64),
            (harmful == unsafe).astype(np.float64),
            np.repeat(prompts, 2),
            0.95,
            seed,
        ),
    ]


def pair_scores(run_dir: Path, name: str, texts: list[Exchange]) -> NDArray[np.float64]:
    """Scores [pairs, 2] of two texts a pair."""
    outputs = outputs_of(run_dir, name, texts)
    assert outputs.scores is not None
    assert outputs.kept.all()
    return outputs.scores.reshape(-1, 2)


def ranks(values: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """[pairs] 1 where the chosen response has the higher value, 0 where the other one has, 1/2 where neither has."""
    picked, other = values[np.arange(len(values)), chosen], values[np.arange(len(values)), 1 - chosen]
    return (picked > other) + 0.5 * (picked == other)


def against_ceiling(
    what: str,
    hits: NDArray[np.float64],
    ceiling_hits: NDArray[np.float64],
    prompts: NDArray[np.int64],
    target: float | None,
    seed: int,
) -> Figure:
    """A share of hits, the share a perfect judge has on the same labels, and their ratio with its own interval."""
    ratio = Statistic(
        np.stack([hits, ceiling_hits], axis=1),
        lambda sums: sums[..., 0] / sums[..., 1],
        np.ones(len(hits), dtype=bool),
    )
    statistics = {"value": classification.mean(hits), "ceiling": classification.mean(ceiling_hits), "ratio": ratio}
    found = measured(statistics, prompts, seed)
    return Figure(what, found["value"], f"gold judge {percent(found['ceiling'])}", found["ratio"], target)


# Moderation ------------------------------------------------------------------------------------------------------


def moderation_figures(run_dir: Path, split: str, n: int, seed: int) -> list[Figure]:
    """The moderation models on noisy labels, beside the gold judge, each other and the majority answer."""
    rows = load_qa(DataSource(split=split, limit=n), RowReport(), need=("is_safe", "category"))
    unsafe, prompts = np.array([not row.is_safe for row in rows]), prompt_numbers(rows)
    gold = np.array([judge(row.prompt, row.response).harmful for row in rows])
    texts = [row.exchange for row in rows]
    flagged = {name: verdict(outputs_of(run_dir, name, texts)) for name in ("qa", "answer_only", "question_only")}
    binary = {name: classification.binary(said, unsafe) for name, said in flagged.items()}
    statistics = {f"{name} {key}": one[key] for name, one in binary.items() for key in ("accuracy", "f1")}
    statistics |= {f"{name} fpr": one["false_positive_rate"] for name, one in binary.items()}
    statistics |= {"gold": classification.f1(gold, unsafe)}
    for name in ("answer_only", "question_only"):
        statistics[f"lead over {name}"] = difference(binary["qa"]["f1"], binary[name]["f1"])
    found = measured(statistics, prompts, seed)
    figures = []
    for name in flagged:
        rest = f"accuracy {percent(found[f'{name} accuracy'])}, false positives {percent(found[f'{name} fpr'])}"
        figures.append(Figure(f"F1, {MODERATION[name]}", found[f"{name} f1"], rest))
    figures[0] = Figure(figures[0].what, figures[0].value, f"gold judge {percent(found['gold'])}; {figures[0].beside}")
    for name in ("answer_only", "question_only"):
        lead = found[f"lead over {name}"]
        figures.append(Figure(f"F1, lead over {MODERATION[name]}", lead, "", lead, 0.05))
    return [*figures, *severity_figures(run_dir, split, n, seed)]


def severity_figures(run_dir: Path, split: str, n: int, seed: int) -> list[Figure]:
    """Exact match over the 19 labels and severity accuracy, beside the gold judge and the majority answer."""
    source = DataSource(split=split, limit=n, synthetic=SyntheticOptions(taxonomy="pku"))
    rows = load_qa(source, RowReport(), need=("is_safe", "category", "severity_level"))
    outputs = outputs_of(run_dir, "severity", [row.exchange for row in rows])
    assert outputs.labels is not None
    assert outputs.severity is not None
    gold = [judge(row.prompt, row.response) for row in rows]
    gold_labels = np.array([[name in one.categories for name in PKU_CATEGORIES] for one in gold])
    gold_levels = np.array([int(one.severity) for one in gold])
    actual, _, _ = label_vectors(rows, outputs.categories)
    truth, _, _ = label_vectors(rows, PKU_CATEGORIES)
    levels = np.array([row.severity_level for row in rows])
    majority = classification.majority({"exact": truth, "severity": levels})
    overall, _ = classification.labels(outputs.labels, actual, outputs.categories)
    of_levels = classification.severity(outputs.severity, levels, len(Severity))
    statistics = {
        "exact": overall["exact_match"],
        "macro": overall["macro_f1"],
        **of_levels,
        "f1": classification.f1(verdict(outputs), levels > 0),
        "gold exact": classification.share((gold_labels == truth).all(axis=1)),
        "gold severity": classification.share(gold_levels == levels),
    }
    found = measured(statistics, prompt_numbers(rows), seed)

    def beside(name: str) -> str:
        return f"majority {majority[name]:.1%}, gold judge {percent(found[f'gold {name}'])}"

    return [
        Figure("severity-sensitive: exact match of 19 labels", found["exact"], beside("exact")),
        Figure("severity-sensitive: severity accuracy", found["severity_accuracy"], beside("severity")),
        Figure("severity-sensitive: severity accuracy, unsafe rows", found["severity_accuracy_unsafe"], ""),
        Figure("severity-sensitive: quadratic kappa of severity", found["severity_kappa"], ""),
        Figure("severity-sensitive: macro F1 of 19 labels", found["macro"], ""),
        Figure("severity-sensitive: F1", found["f1"], ""),
    ]


def verdict(outputs: Outputs) -> NDArray[np.bool_]:
    """[texts] is it unsafe? No text may have been too long."""
    assert outputs.unsafe is not None
    assert outputs.kept.all()
    return outputs.unsafe


def difference(first: Statistic, second: Statistic) -> Statistic:
    """The first figure minus the second, over the same rows."""
    width = first.terms.shape[1]
    return Statistic(
        np.concatenate([first.terms, second.terms], axis=1),
        lambda sums: first.of(sums[..., :width]) - second.of(sums[..., width:]),
        first.counted | second.counted,
    )


# Flaws -----------------------------------------------------------------------------------------------------------


def flaws_table(run_dir: Path, split: str, seed: int) -> Table:
    """How often the reward model prefers a good answer to a copy with one flaw, by the flaw, without label noise."""
    rng = random.Random(f"{seed} flaws")
    table = Table(title=f"reward model: good answer above its copy with one flaw, {split} split, no label noise")
    table.add_column("flaw")
    table.add_column("share", justify="right")
    prompts = enumerate_prompts(split)
    for flaw in EDITS:
        asked = rng.sample(prompts, 2 * FLAWED_PAIRS)
        pairs = [(prompt.text, *flawed_pair(prompt, rng, [flaw])) for prompt in asked]
        clear = [pair for pair in pairs if judge(pair[0], pair[1]).helpfulness > judge(pair[0], pair[2]).helpfulness][
            :FLAWED_PAIRS
        ]
        texts = [Exchange(prompt, answer) for prompt, *answers in clear for answer in answers]
        good, flawed = pair_scores(run_dir, "reward", texts).T
        found = measured({"share": classification.share(good > flawed)}, np.arange(len(clear)), seed)
        table.add_row(flaw.replace("_", " "), with_interval(found["share"]))
    return table


# Tables ----------------------------------------------------------------------------------------------------------


def measured(statistics: dict[str, Statistic], prompts: NDArray[np.int64], seed: int) -> dict[str, Estimate]:
    """Every figure with its interval; each of them exists on these rows."""
    found = measure(statistics, prompts, seed=seed)[""]
    missing = [name for name, one in found.items() if one is None]
    if missing:
        raise ValueError(f"there is no {', '.join(missing)} on these rows: measure on more rows")
    return {name: one for name, one in found.items() if one is not None}


def prompt_numbers(rows: list[PreferenceRow] | list[QARow]) -> NDArray[np.int64]:
    """[rows] one integer for each prompt."""
    return np.unique([row.prompt for row in rows], return_inverse=True)[1]


def percent(estimate: Estimate) -> str:
    """The value alone."""
    return f"{estimate.value:.1%}"


def with_interval(estimate: Estimate) -> str:
    """Value and 95 % interval, in percent."""
    return f"{100 * estimate.value:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def figures_table(figures: list[Figure], split: str) -> Table:
    """Value, what is to be expected, what was reached of it, the target."""
    table = Table(title=f"synthetic corpus, {split} split, percent with 95 % intervals")
    for column in ("figure", "value", "beside", "reached", "target", ""):
        table.add_column(column, justify="left" if column in ("figure", "beside") else "right")
    for figure in figures:
        reached = "" if figure.reached is None else with_interval(figure.reached)
        target = "" if figure.target is None else f"{100 * figure.target:.0f}"
        mark = "" if figure.target is None else "met" if figure.met else "MISSED"
        table.add_row(figure.what, with_interval(figure.value), figure.beside, reached, target, mark)
    return table


if __name__ == "__main__":
    sys.exit(main())
