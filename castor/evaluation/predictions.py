"""What another system said of the labelled rows: read from a file, or asked of a function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from castor.config.assess import Predictions
from castor.config.data import is_function
from castor.data.rows.fields import categories, flag, integer, plain
from castor.data.rows.load import stream_every_kind
from castor.data.rows.readings import read_fields
from castor.data.rows.schemas import Exchange, QARow
from castor.data.sources.file_names import is_data_file
from castor.data.sources.files import read_records
from castor.data.sources.record import RowError
from castor.data.sources.report import RowReport
from castor.evaluation.labelled import LabelledSet, data_taxonomy
from castor.evaluation.model_outputs import Outputs
from castor.evaluation.records import SEVERITIES
from castor.io.errors import CastorError
from castor.io.user_function import call_function, load_function
from castor.scoring.frozen import Progress

CHUNK = 64  # answers of one call of a function
_CATEGORIES = ("category", "harm_category")


def predictions_named(model: str | Predictions) -> Predictions | None:
    """The predictions that a config names, by a section or by the name of their file or function; None for a model."""
    if isinstance(model, Predictions):
        return model
    return Predictions(source=model) if is_function(model) or is_data_file(model) else None


def run_predictions(name: str, model: Predictions, data: LabelledSet, on: Progress) -> Outputs:
    """The predictions for all texts of `data`, in their order.

    A prediction of a score model has `score`. One of a moderation model has `unsafe` or `is_safe`, `probability` (of
    being unsafe), `category` (as rows of the data sets have it) and `severity_level` (0 to 3), any of them; what is not
    given is not measured, and the verdict follows from the first of the four that there is, at 0.5. All predictions
    have the same fields.

    Raises CastorError for a text without a prediction, and for one that cannot be read.
    """
    said = _asked(model, data.texts, on) if is_function(model.source) else _read(model, data)
    place = f"model {name!r}: the prediction of {model.source} for"
    if model.kind == "moderation":
        return _moderation(place, said, data)
    scores = np.array([_number(place, text, row, "score") for text, row in zip(data.texts, said, strict=True)])
    kept = np.ones(len(scores), dtype=bool)
    if model.kind == "reward":
        return Outputs("reward", kept, scores)
    given = all("probability" in row for row in said)
    likely = [_probability(place, text, row) for text, row in zip(data.texts, said, strict=True)] if given else None
    return Outputs("cost", kept, scores, None if likely is None else np.array(likely), scores > 0)


# ---- where they come from


def _asked(model: Predictions, texts: Sequence[Exchange], on: Progress) -> list[Mapping[str, Any]]:
    """What the function returns: for each text a mapping, or a lone truth value or number."""
    function, said = load_function(model.source), list[Mapping[str, Any]]()
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        prompts = ["\n".join([*(turn for pair in text.history for turn in pair), text.prompt]) for text in chunk]
        returned = call_function(model.source, function, prompts, [text.response for text in chunk])
        found = list(returned) if isinstance(returned, Iterable) and not isinstance(returned, str | Mapping) else None
        if found is None or len(found) != len(chunk):
            got = type(returned).__name__ if found is None else f"{len(found)} predictions"
            raise CastorError(f"{model.source} returned {got} for {len(chunk)} responses; it must return one for each")
        said += [_as_fields(model, each) for each in found]
        on(len(said), len(texts))
    return said


def _as_fields(model: Predictions, value: object) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    value = plain(value)
    field = "score" if model.kind != "moderation" else "unsafe" if isinstance(value, bool) else "probability"
    return {field: value}


def _read(model: Predictions, data: LabelledSet) -> list[Mapping[str, Any]]:
    """The file's rows, matched by their texts, else by `id`, else by their order."""
    rows = list[Mapping[str, Any]]()
    for record in read_records(model.source):
        if isinstance(record.raw, RowError):
            raise CastorError(f"{record.location}: {record.raw}; mend the file")
        rows.append({field: value for field, value in record.raw.items() if plain(value) is not None})
    if rows and all("response" in row for row in rows):
        by_text = {_exchange(model, row): row for row in rows}
        return _matched(model, data, by_text, "prompt and response")
    if rows and all("id" in row for row in rows):
        exchanges = _exchanges_by_id(data)
        by_text = {exchanges[key]: row for row in rows if (key := str(row["id"])) in exchanges}
        return _matched(model, data, by_text, "id")
    texts: Sequence[int] = data.row_texts.tolist() if data.rows else data.pair_texts.ravel().tolist()
    if len(rows) != len(texts):
        raise CastorError(
            f"{model.source} has {len(rows)} predictions for the {len(texts)} labelled answers of "
            f"{data.source.source}; give each its prompt and response, or the id of its row"
        )
    in_order = {data.texts[text]: row for text, row in zip(texts, rows, strict=True)}
    return _matched(model, data, in_order, "order")


def _matched(
    model: Predictions, data: LabelledSet, by_text: Mapping[Exchange, Mapping[str, Any]], by: str
) -> list[Mapping[str, Any]]:
    missing = [text for text in data.texts if text not in by_text]
    if missing:
        raise CastorError(
            f"{model.source} has no prediction (by {by}) for {len(missing)} of the {len(data.texts)} answers of "
            f"{data.source.source}, the first being that to {missing[0].prompt[:80]!r}; add them"
        )
    return [by_text[text] for text in data.texts]


def _exchange(model: Predictions, row: Mapping[str, Any]) -> Exchange:
    try:
        reading = read_fields(row)
    except RowError as error:
        raise CastorError(f"{model.source}: a prediction has a response, but {error}; mend the file") from error
    return Exchange(reading.prompt, row["response"], reading.history)


def _exchanges_by_id(data: LabelledSet) -> dict[str, Exchange]:
    """The answer of every row of the source that has an `id` and one answer."""
    found = {}
    for good in stream_every_kind(data.source, RowReport(), "qa"):
        answers = good.row.answers()
        if len(answers) == 1 and plain(good.raw.get("id")) is not None:
            found[str(good.raw["id"])] = answers[0].exchange
    return found


# ---- what they say


def _moderation(place: str, said: Sequence[Mapping[str, Any]], data: LabelledSet) -> Outputs:
    read = [_judgement(place, text, row) for text, row in zip(data.texts, said, strict=True)]
    verdicts, likely, labels, severity = (list(column) for column in zip(*read, strict=True))
    whole: dict[str, list[Any]] = {
        "unsafe": verdicts, "probability": likely, "category": labels, "severity_level": severity,
    }  # fmt: skip
    for field, values in whole.items():
        if None in values and any(value is not None for value in values):
            text = data.texts[values.index(None)]
            raise CastorError(
                f"{place} {text.prompt[:80]!r} has no {field}, which others have; give all the same fields"
            )
    if likely[0] is None and verdicts[0] is None and labels[0] is None and severity[0] is None:
        raise CastorError(
            f"{place} {data.texts[0].prompt[:80]!r} has none of unsafe, probability, category, severity_level"
        )
    names = frozenset(name for held in labels if held for name in held)
    taxonomy = data_taxonomy([QARow("", "", category=names)] if names else data.rows)
    vectors = None
    if labels[0] is not None:
        vectors = np.array([[name in held for name in taxonomy] for held in labels], dtype=bool)
    levels = None if severity[0] is None else np.array(severity, dtype=np.int64)
    probability = None if likely[0] is None else np.array(likely, dtype=np.float64)
    if verdicts[0] is not None:
        unsafe = np.array(verdicts, dtype=bool)
    elif probability is not None:
        unsafe = probability > 0.5
    else:
        unsafe = np.array([bool(each) for each in (severity if labels[0] is None else labels)])
    everything = np.ones(len(data.texts), dtype=bool)
    categories_said = () if vectors is None else taxonomy
    return Outputs("moderation", everything, None, probability, unsafe, categories_said, vectors, levels)


def _judgement(
    place: str, text: Exchange, row: Mapping[str, Any]
) -> tuple[bool | None, float | None, frozenset[str] | None, int | None]:
    try:
        said = flag(row, "unsafe")
        safe = flag(row, "is_safe")
        unsafe = said if said is not None else None if safe is None else not safe
        # without a field named "", nothing is said of safety, so that only the names are checked
        labels = next((found for field in _CATEGORIES if (found := categories(row, field, "")) is not None), None)
        severity = integer(row, "severity_level", range(len(SEVERITIES)), "severity out of range")
    except RowError as error:
        raise CastorError(f"{place} {text.prompt[:80]!r} cannot be read: {error}") from error
    return unsafe, _probability(place, text, row) if "probability" in row else None, labels, severity


def _probability(place: str, text: Exchange, row: Mapping[str, Any]) -> float:
    value = _number(place, text, row, "probability")
    if not 0 <= value <= 1:
        raise CastorError(f"{place} {text.prompt[:80]!r} has the probability {value:g}; it must lie in 0 to 1")
    return value


def _number(place: str, text: Exchange, row: Mapping[str, Any], field: str) -> float:
    try:
        value = float(row.get(field, math.nan))
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise CastorError(
            f"{place} {text.prompt[:80]!r} has the {field} {row.get(field)!r}; it must be a finite number"
        )
    return value
