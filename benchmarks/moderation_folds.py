"""QA-moderation on real rows, beside a linear classifier: `python -m benchmarks.moderation_folds ROWS`.

ROWS is a file in the BeaverTails schema. Five folds by prompt: each row is judged by models that saw no row of its
prompt. A tiny model, made from scratch on the training folds (tokenizer included), learns through the moderation stage;
beside it TF-IDF with one-vs-rest logistic regression sees the pair, the answer alone, or the question alone. The table
pools all folds; intervals are bootstrap intervals over prompts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.multiclass import OneVsRestClassifier

from castor.config.data import DataSource
from castor.data.rows.load import load_qa
from castor.data.rows.schemas import QARow
from castor.data.sources.report import RowReport
from castor.evaluation.labelled import label_vectors
from castor.scoring.moderator import Moderator
from castor.statistics import classification
from castor.statistics.bootstrap import Measure, measure
from castor.taxonomy import BEAVERTAILS_CATEGORIES

ROOT = Path(__file__).parents[1]
Flags = NDArray[np.bool_]
Prediction = tuple[Flags, Flags]
"""Is each row unsafe [rows], and its categories [rows, 14]."""


def main() -> int:
    """Judge every row once by every model; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="QA rows in the BeaverTails schema")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--linear-only", action="store_true", help="leave out the model that takes minutes")
    parser.add_argument("--out", type=Path, help="also write the predictions' figures to this JSON file")
    args = parser.parse_args()
    source = DataSource(source=str(args.rows))
    rows = load_qa(source, RowReport(), need=("is_safe", "category"))
    actual, _, _ = label_vectors(rows, BEAVERTAILS_CATEGORIES)
    prompts = np.unique([row.prompt for row in rows], return_inverse=True)[1]
    folds = list(GroupKFold(args.folds, shuffle=True, random_state=args.seed).split(actual, groups=prompts))
    models: dict[str, Callable[[list[QARow], list[QARow]], Prediction]] = {
        "TF-IDF + logistic regression, question and answer": lambda train, test: linear(train, test, ("q", "a")),
        "TF-IDF + logistic regression, answer only": lambda train, test: linear(train, test, ("a",)),
        "TF-IDF + logistic regression, question only": lambda train, test: linear(train, test, ("q",)),
    }
    if not args.linear_only:
        models = {"tiny QA-moderation from scratch": lambda train, test: tiny(train, test, args.seed), **models}
    figures: dict[str, dict[str, Measure | None]] = {}
    for name, predict in models.items():
        unsafe, labels = np.zeros(len(rows), dtype=bool), np.zeros_like(actual)
        for training, held_out in folds:
            unsafe[held_out], labels[held_out] = predict([rows[i] for i in training], [rows[i] for i in held_out])
        figures[name] = figures_of(unsafe, labels, actual, prompts, args.seed)
    Console(width=150).print(table(figures, actual))
    if args.out is not None:
        values = {
            name: {key: one.model_dump() for key, one in row.items() if one is not None}
            for name, row in figures.items()
        }
        args.out.write_text(json.dumps(values, indent=2) + "\n")
    return 0


def linear(train: list[QARow], test: list[QARow], parts: tuple[str, ...]) -> Prediction:
    """Words and pairs of words of each part, weighted by TF-IDF; one balanced logistic regression a category."""
    seen: list[csr_matrix] = []
    judged: list[csr_matrix] = []
    for part in parts:
        texts = [[row.prompt if part == "q" else row.response for row in rows] for rows in (train, test)]
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        seen.append(vectorizer.fit_transform(texts[0]))
        judged.append(vectorizer.transform(texts[1]))
    labels, _, _ = label_vectors(train, BEAVERTAILS_CATEGORIES)
    classifier = OneVsRestClassifier(LogisticRegression(class_weight="balanced", solver="liblinear"))
    classifier.fit(hstack(seen).tocsr(), labels)
    predicted = classifier.predict(hstack(judged).tocsr()).astype(bool)
    return predicted.any(axis=1), predicted


def tiny(train: list[QARow], test: list[QARow], seed: int) -> Prediction:
    """A model of half a million parameters beside its embeddings, through the pipeline's own moderation stage."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.jsonl"
        data.write_text("".join(json.dumps(raw(row)) + "\n" for row in train), encoding="utf-8")
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(tiny_config(data, Path(folder) / "run", seed)))
        subprocess.run([sys.executable, "-m", "castor", "pipeline", str(config)], cwd=ROOT, check=True)
        said = Moderator(Path(folder) / "run" / "qa").predict([row.exchange for row in test])
    order = [said.info.categories.index(name) for name in BEAVERTAILS_CATEGORIES]
    return said.unsafe, said.labels[:, order]


def tiny_config(data: Path, run_dir: Path, seed: int) -> dict:
    """The pipeline of one fold: make the model, train it as a moderation model."""
    source = {"source": str(data)}
    model = {"data": source, "tokenizer": "bpe", "vocab_size": 3000, "hidden_size": 128, "intermediate_size": 344}
    optimizer = {"lr": 1.0e-3, "lr_warmup_ratio": 0.1, "weight_decay": 0.1}
    stage = {
        "data": source,
        "model": "stage:model",
        "epochs": 6,
        "batch_size": 32,
        "max_length": 256,
        "validation_share": 0.12,
        "engine": {"zero_stage": 0, "pack_length": 256, "optimizer": optimizer},
    }
    return {
        "run_dir": str(run_dir),
        "seed": seed,
        "model": {**model, "layers": 2, "initializer_range": 0.04, "max_position_embeddings": 1024},
        "moderation": {"qa": stage},
        "wandb": {"mode": "disabled"},
    }


def raw(row: QARow) -> dict:
    """A row in the BeaverTails schema."""
    held = row.category or frozenset()
    return {
        "prompt": row.prompt,
        "response": row.response,
        "is_safe": row.is_safe,
        "category": {name: name in held for name in BEAVERTAILS_CATEGORIES},
    }


def figures_of(
    unsafe: Flags, labels: Flags, actual: Flags, prompts: NDArray[np.int64], seed: int
) -> dict[str, Measure | None]:
    """Accuracy, F1, false-positive rate and exact match with their intervals."""
    binary = classification.binary(unsafe, actual.any(axis=1))
    overall, _ = classification.labels(labels, actual, BEAVERTAILS_CATEGORIES)
    chosen = {
        "accuracy": binary["accuracy"],
        "F1": binary["f1"],
        "false positives": binary["false_positive_rate"],
        "exact match": overall["exact_match"],
        "macro F1": overall["macro_f1"],
    }
    return measure(chosen, prompts, seed=seed)[""]


def table(figures: dict[str, dict[str, Measure | None]], actual: Flags) -> Table:
    """One row a model, in percent with 95 % intervals."""
    majority = classification.majority({"accuracy": actual.any(axis=1), "exact match": actual})
    title = f"{len(actual)} rows, {100 * actual.any(axis=1).mean():.1f} % unsafe; all folds together, 95 % intervals"
    shown = Table(title=title)
    shown.add_column("model")
    columns = list(next(iter(figures.values())))
    for column in columns:
        shown.add_column(column, justify="right")
    shown.add_row("most frequent answer", *(f"{100 * majority[key]:.1f}" if key in majority else "" for key in columns))
    for name, row in figures.items():
        shown.add_row(name, *(cell(one) for one in row.values()))
    return shown


def cell(one: Measure | None) -> str:
    """Value and interval in percent."""
    return "" if one is None else f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"


if __name__ == "__main__":
    sys.exit(main())
