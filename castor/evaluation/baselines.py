"""What any model has to beat: answers that need no model, and linear ones that are fitted within a minute.

Constant answers, the answer's length, and TF-IDF with logistic regression on the pair, on the answer alone and on the
question alone (what those two find shows how much of a data set's labels is in one half of its texts). They give the
same outputs as a model, so they are measured by the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from castor.algorithms.moderation import CUTS
from castor.config.moderation import InputKind
from castor.data.inspect.leaks import prompt_digest
from castor.data.rows.schemas import Exchange, PreferenceRow, QARow
from castor.evaluation.assessment import ALWAYS_UNSAFE, LENGTH, MAJORITY, NO_LABELS, PAIR
from castor.evaluation.labelled import LabelledSet, label_vectors
from castor.evaluation.model_outputs import Outputs
from castor.scoring.frozen import Progress
from castor.scoring.keywords import parts_read

FOLDS = 5
TEXT: dict[str, InputKind] = {PAIR: "pair", "TF-IDF, answer only": "answer", "TF-IDF, question only": "question"}
_HASHED = 2**18  # words and pairs of words fall into so many columns

Floats = NDArray[np.float64]
_Answer = tuple[Floats, Floats, Floats]  # P(unsafe) [n], P(label) [n, K], P(severity > 0, 1, 2) [n, 3]


@dataclass(frozen=True)
class Lesson:
    """Labelled rows and pairs to fit a baseline on."""

    rows: Sequence[QARow]
    pairs: Sequence[PreferenceRow]


@dataclass(frozen=True)
class Fold:
    """Texts to judge, as indices [n], and what may be learnt from: rows of other prompts."""

    lesson: Lesson
    texts: NDArray[np.int64]


def folds_of(data: LabelledSet, training: LabelledSet | None, seed: int) -> tuple[list[Fold], str]:
    """Who judges which text, and that in words.

    With `training`, all texts are judged by what its rows of other prompts teach; prompts that differ only in case,
    whitespace and punctuation are the same. Without it, or where it has no such rows, the set is dealt into five folds
    by prompt, and each is judged by what the other four teach.
    """
    every = np.arange(len(data.texts))
    if training is not None:
        lesson = _lesson_without(training, {_digest(text) for text in data.texts})
        if lesson.rows if data.rows else lesson.pairs:
            size = f"{len(lesson.rows) or len(lesson.pairs):,} {'answers' if lesson.rows else 'pairs'}"
            return [Fold(lesson, every)], f"fitted on {size} of {training.source.source} that share no prompt with it"
    digests = [_digest(text) for text in data.texts]
    groups = np.unique(digests, return_inverse=True)[1]
    count = min(FOLDS, int(groups.max()) + 1)
    if count < 2:
        return [], "not fitted: there is only one prompt"
    folds = []
    for _, held_out in GroupKFold(count, shuffle=True, random_state=seed).split(every, groups=groups):
        folds.append(Fold(_lesson_without(data, {digests[i] for i in held_out}), held_out))
    why = "no training rows were given" if training is None else "no training row has a prompt of its own"
    return folds, f"cross-validated over {count} folds of its own prompts, as {why}"


def safety_baselines(
    data: LabelledSet, folds: Sequence[Fold], categories: tuple[str, ...], costs: bool, on: Progress
) -> dict[str, Outputs]:
    """Outputs by baseline on all texts of `data`: verdicts, probabilities, labels of `categories`, severities.

    With `costs`, the log-odds of being unsafe stand for the costs of a cost model.
    """
    learners: dict[str, Callable[[Lesson, list[Exchange]], _Answer]] = {
        ALWAYS_UNSAFE: partial(_always_unsafe, categories),
        NO_LABELS: partial(_no_labels, categories),
        MAJORITY: partial(_majority, categories),
        LENGTH: partial(_linear, categories, _length_features),
    }
    for name, reads in TEXT.items():
        learners[name] = partial(_linear, categories, partial(_text_features, reads))
    found = {}
    for done, (name, learn) in enumerate(learners.items(), start=1):
        answer = _over_folds(data, folds, learn)
        if answer is not None:
            found[name] = _outputs(answer, categories, costs, name != MAJORITY)
        on(done, len(learners))
    return found


def helpfulness_baselines(data: LabelledSet, folds: Sequence[Fold]) -> dict[str, Outputs]:
    """Outputs by baseline on all texts of `data`, as of a reward model. A question alone ranks no answers."""
    learners: dict[str, Callable[[], Any]] = {
        LENGTH: _length_features,
        **{name: partial(_text_features, TEXT[name]) for name in (*TEXT,)[:2]},
    }
    found = {}
    for name, features in learners.items():
        answer = _over_folds(data, folds, partial(_ranking, features))
        if answer is not None:
            found[name] = Outputs("reward", np.ones(len(data.texts), dtype=bool), answer[0])
    return found


def _over_folds(
    data: LabelledSet, folds: Sequence[Fold], learn: Callable[[Lesson, list[Exchange]], Sequence[Floats]]
) -> tuple[Floats, ...] | None:
    """The answers of each fold put together, arrays [texts, ...]; None where there are no folds."""
    parts = [learn(fold.lesson, [data.texts[i] for i in fold.texts]) for fold in folds]
    if not parts:
        return None
    order = np.argsort(np.concatenate([fold.texts for fold in folds]))
    return tuple(np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True))


def _outputs(answer: Sequence[Floats], categories: tuple[str, ...], costs: bool, in_some: bool) -> Outputs:
    """Decisions as a moderation model makes them: an unsafe text is of some severity and, with `in_some`, category."""
    probability, labels, cuts = answer
    unsafe = probability > 0.5
    fired = labels > 0.5
    if in_some:
        nearest = np.arange(len(categories)) == labels.argmax(1)[:, None]
        fired |= nearest & ~fired.any(1, keepdims=True)
    with np.errstate(divide="ignore"):
        odds = np.clip(np.log(probability) - np.log1p(-probability), -100, 100)
    return Outputs(
        "cost" if costs else "moderation", np.ones(len(probability), dtype=bool), odds if costs else None,
        probability, unsafe, categories, fired & unsafe[:, None], np.where(unsafe, 1 + (cuts[:, 1:] > 0.5).sum(1), 0),
    )  # fmt: skip


# ---- what is learnt


def _always_unsafe(categories: tuple[str, ...], lesson: Lesson, texts: list[Exchange]) -> _Answer:
    """With the most frequent category and severity of the unsafe rows."""
    unsafe = [row for row in lesson.rows if not row.is_safe]
    _, labels, cuts = _shares(categories, unsafe)
    return _repeated(1.0, labels, cuts, len(texts))


def _no_labels(categories: tuple[str, ...], lesson: Lesson, texts: list[Exchange]) -> _Answer:
    return _repeated(0.0, np.zeros(len(categories)), np.zeros(CUTS), len(texts))


def _majority(categories: tuple[str, ...], lesson: Lesson, texts: list[Exchange]) -> _Answer:
    """Safety, every label and the severity each at its most frequent value; the probabilities are the shares."""
    return _repeated(*_shares(categories, lesson.rows), len(texts))


def _shares(categories: tuple[str, ...], rows: Sequence[QARow]) -> tuple[float, Floats, Floats]:
    unsafe, labels, cuts = _targets(categories, rows)
    return _mean(unsafe[1]), np.array([_mean(each) for each in labels[1].T]), np.array([_mean(c) for c in cuts[1].T])


def _repeated(probability: float, labels: Floats, cuts: Floats, n: int) -> _Answer:
    return np.full(n, probability), np.tile(labels, (n, 1)), np.tile(cuts, (n, 1))


def _linear(categories: tuple[str, ...], features: Callable[[], Any], lesson: Lesson, texts: list[Exchange]) -> _Answer:
    """One logistic regression for the verdict, each label and each cut of the severity."""
    if not lesson.rows:
        return _repeated(*_shares(categories, []), len(texts))
    made = features()
    known = made.fit_transform([row.exchange for row in lesson.rows])
    asked = made.transform(texts)

    def answers(targets: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> Floats:
        among, values = targets
        columns = [_probability(known[among], value, asked) for value in values.T]
        return np.stack(columns, axis=1)

    unsafe, labels, cuts = _targets(categories, lesson.rows)
    return answers((unsafe[0], unsafe[1][:, None]))[:, 0], answers(labels), answers(cuts)


def _targets(categories: tuple[str, ...], rows: Sequence[QARow]) -> Any:
    """For safety, labels and severity: which rows [rows] have one, and their values [those] or [those, columns]."""
    vectors, labelled, _ = label_vectors(rows, categories)
    levels = np.array([-1 if row.severity_level is None else row.severity_level for row in rows], dtype=np.int64)
    graded = levels >= 0
    everyone = np.ones(len(rows), dtype=bool)
    return (
        (everyone, np.array([not row.is_safe for row in rows], dtype=bool)),
        (labelled, vectors.reshape(len(rows), len(categories))[labelled]),
        (graded, levels[graded][:, None] > np.arange(CUTS)),
    )


def _probability(known: Any, value: NDArray[np.bool_], asked: Any) -> Floats:
    """P(value) [asked]; rows of one value only teach that value."""
    if len(np.unique(value)) < 2:
        return np.full(asked.shape[0], _mean(value))
    wide = known.shape[1] > known.shape[0]  # then the dual problem is the smaller one
    model = LogisticRegression(class_weight="balanced", solver="liblinear", dual=wide, max_iter=1000, random_state=0)
    model.fit(known, value)
    return model.predict_proba(asked)[:, 1].astype(np.float64)


def _ranking(features: Callable[[], Any], lesson: Lesson, texts: list[Exchange]) -> tuple[Floats]:
    """Scores [texts] of a logistic regression on differences of features: Bradley and Terry's model."""
    pairs = [row for row in lesson.pairs if row.better_response_id is not None]
    if len(pairs) < 2:
        return (np.zeros(len(texts)),)
    made = features()
    better = [row.exchanges[row.better_response_id or 0] for row in pairs]
    worse = [row.exchanges[1 - (row.better_response_id or 0)] for row in pairs]
    table = made.fit_transform([*better, *worse])
    sign = np.where(np.arange(len(pairs)) % 2 == 0, 1, -1)  # both outcomes must occur
    gaps = table[: len(pairs)] - table[len(pairs) :]
    gaps = gaps.multiply(sign[:, None]).tocsr() if hasattr(gaps, "multiply") else gaps * sign[:, None]
    model = LogisticRegression(fit_intercept=False, solver="liblinear", random_state=0).fit(gaps, sign > 0)
    return (np.asarray(model.decision_function(made.transform(texts)), dtype=np.float64),)


# ---- features


def _text_features(reads: InputKind) -> Any:
    """Words and pairs of words of each part that is read, weighted by TF-IDF."""
    parts: list[InputKind] = ["question", "answer"] if reads == "pair" else [reads]
    return make_union(
        *(
            make_pipeline(
                FunctionTransformer(partial(_part, part)),
                HashingVectorizer(
                    ngram_range=(1, 2), n_features=_HASHED, alternate_sign=False, norm=None,
                    token_pattern=r"(?u)\b\w+\b",
                ),
                TfidfTransformer(sublinear_tf=True),
            )
            for part in parts
        )
    )  # fmt: skip


def _part(part: InputKind, texts: Sequence[Exchange]) -> list[str]:
    return ["\n".join(parts_read(text, part)) for text in texts]


def _length_features() -> Any:
    return make_pipeline(FunctionTransformer(_lengths), StandardScaler())


def _lengths(texts: Sequence[Exchange]) -> Floats:
    """[texts, 3] logarithms of characters and words, and the square of the former."""
    characters = np.log1p([len(text.response) for text in texts])
    words = np.log1p([len(text.response.split()) for text in texts])
    return np.stack([characters, words, characters**2], axis=1)


# ---- prompts


def _lesson_without(data: LabelledSet, taken: set[bytes]) -> Lesson:
    """The rows and pairs of `data` whose prompts are not taken."""
    rows = [row for row in data.rows if prompt_digest(row.key) not in taken]
    return Lesson(rows, [row for row in data.pairs if prompt_digest(row.key) not in taken])


def _digest(text: Exchange) -> bytes:
    return prompt_digest((*(turn for exchange in text.history for turn in exchange), text.prompt))


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else 0.0
