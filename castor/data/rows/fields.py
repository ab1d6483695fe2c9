"""One field of a raw row: which spellings of a value are understood, and what makes one bad.

A value that is missing is absent, at any depth: null, NaN (pandas writes it for null) and pandas.NA. Labels are read as
JSON, Arrow, pandas and spreadsheet programs write them: `true`, `TRUE`, `yes`, `1` and `1.0` are one truth value, `1`
and `1.0` one integer, and an empty cell, `NA`, `N/A`, `NaN`, `None` and `null` are missing. Objects and lists may stand
in a text, as JSON or as Python prints them, because a cell of a CSV file cannot hold them otherwise. The texts of
prompts and responses are never interpreted.
"""

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from castor.data.sources.record import Reason, RowError
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, Severity, nearest_category

History = tuple[tuple[str, str], ...]
"""Earlier exchanges of a conversation, oldest first: (what the user said, what the assistant answered)."""

_CATEGORIES = frozenset(BEAVERTAILS_CATEGORIES) | frozenset(PKU_CATEGORIES)
_TAXONOMIES = {len(names): names for names in (BEAVERTAILS_CATEGORIES, PKU_CATEGORIES)}
_SEVERITIES = range(len(Severity))
_MISSING_WORDS = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "none", "null"})
_TRUTH_WORDS = {"true": True, "yes": True, "false": False, "no": False}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_PLAIN_TYPES = frozenset({bool, int, str, list, dict, type(None)})
_KEYS_SHOWN = 8
_TEXT_SHOWN = 40


def plain(value: object) -> Any:
    """`value` as Python's own types, and None where it is missing."""
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    return None if type(value).__name__ == "NAType" else value  # pandas.NA, without importing pandas for it


def decoded(value: object) -> Any:
    """`value` of a field that holds an object, a list or a name; a text that spells an object or a list is decoded."""
    value = plain(value)
    if not isinstance(value, str):
        return value
    if _is_missing_word(value):
        return None
    if value.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue  # the next reader, or a text that the field will refuse
    return value


def present_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row whose values are not missing."""
    values = {name: plain(value) for name, value in raw.items()}
    return {name: value for name, value in values.items() if value is not None}


def described(raw: Mapping[str, Any]) -> str:
    """The row's field names, for an error message."""
    shown = ", ".join(repr(str(key)) for key in list(raw)[:_KEYS_SHOWN])
    return f"the row has {shown or 'no fields'}" + (" and more" if len(raw) > _KEYS_SHOWN else "")


def wrong_type(field: str, wanted: str, value: object) -> RowError:
    """The error of a field whose value is of another type, or spelt in a way that is not understood."""
    shown = value if value is None or isinstance(value, bool | int | float | Decimal) else type(value).__name__
    if isinstance(value, str):
        shown = repr(value if len(value) <= _TEXT_SHOWN else value[:_TEXT_SHOWN] + "…")
    return RowError("wrong type", f"{field} is {shown}, not {wanted}")


def checked_text(value: object, field: str, when_empty: Reason) -> str:
    """`value`, which must be a text that is not blank and that a tokenizer takes. Raises RowError."""
    if value is None:
        raise RowError("missing field", f"{field} is absent or null")
    if not isinstance(value, str):
        raise wrong_type(field, "a string", value)
    if not value.strip():
        raise RowError(when_empty, f"{field} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; no tokenizer takes it
        raise RowError("invalid text", f"{field} holds a lone surrogate at character {error.start}") from error
    return value


def flag(raw: Mapping[str, Any], field: str) -> bool | None:
    """True, false, or None where it is missing. Raises RowError."""
    return _truth(raw.get(field), field)


def integer(raw: Mapping[str, Any], field: str, allowed: range, out_of_range: Reason) -> int | None:
    """An integer in `allowed`, or None where it is missing. Raises RowError, also for a number between two integers."""
    value = _label(raw.get(field))
    if value is None:
        return None
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise wrong_type(field, "an integer", plain(raw[field]))
    if value not in allowed:
        raise RowError(out_of_range, f"{field} is {value}, not {allowed[0]} to {allowed[-1]}")
    return int(value)


def severity(raw: Mapping[str, Any], field: str) -> int | None:
    """A severity level, or None where it is missing. Raises RowError."""
    return integer(raw, field, _SEVERITIES, "severity out of range")


def categories(raw: Mapping[str, Any], field: str, safe_field: str) -> frozenset[str] | None:
    """The harm categories that apply, or None where the field is missing. Raises RowError.

    Three spellings: an object of name: truth value; a list of names (or one name); a list of 14 or 19 truth values in
    the order of BEAVERTAILS_CATEGORIES or PKU_CATEGORIES. A category whose value is missing was not judged; where all
    values are missing, so is the field.

    `is_safe` must agree as far as the data sets' definitions go: no response is safe and in a harm category.
    BeaverTails also defines unsafe as being in one of its 14 categories (all of its rows agree); PKU-SafeRLHF's 19
    leave room for a harm outside the list.
    """
    found = _category_names(decoded(raw.get(field)), field)
    if found is None:
        return None
    names, judged = found
    is_safe = flag(raw, safe_field)
    if is_safe and names:
        raise RowError(
            "is_safe contradicts the categories", f"{safe_field} is true, {field} has {', '.join(sorted(names))}"
        )
    if is_safe is False and not names and judged == frozenset(BEAVERTAILS_CATEGORIES):
        raise RowError("is_safe contradicts the categories", f"{safe_field} is false, {field} has none of the 14")
    return names


def _category_names(value: object, field: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """The categories that hold, and all that were judged (empty where only names are given); None without either."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return _holding({name: _truth(holds, field, name) for name, holds in value.items()}, field)
    items = [plain(item) for item in value] if isinstance(value, list | tuple) else [value]
    if all(item is None or isinstance(item, str) for item in items):
        names = [item for item in items if item is not None]
        return (frozenset(_known(name, field) for name in names), frozenset()) if names or not items else None
    if not isinstance(value, Sequence):
        raise wrong_type(field, "an object of category names, a list of names or a list of truth values", value)
    labels = [_truth(item, field, index) for index, item in enumerate(items)]
    taxonomy = _TAXONOMIES.get(len(labels))
    if taxonomy is None:
        wanted = " or ".join(str(width) for width in _TAXONOMIES)
        raise RowError("label vector of the wrong width", f"{field} has {len(labels)} labels, not {wanted}")
    return _holding(dict(zip(taxonomy, labels, strict=True)), field)


def _holding(labels: Mapping[Any, bool | None], field: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """As `_category_names`, from a truth value for each name."""
    judged = {_known(name, field): holds for name, holds in labels.items() if holds is not None}
    if labels and not judged:
        return None
    return frozenset(name for name, holds in judged.items() if holds), frozenset(judged)


def _known(name: object, field: str) -> str:
    if not isinstance(name, str):
        raise RowError("unknown category", f"{field} names {name!r}")
    if name not in _CATEGORIES:
        nearest = nearest_category(name, (*PKU_CATEGORIES, *BEAVERTAILS_CATEGORIES))
        raise RowError("unknown category", f"{field} names {name!r}: did you mean {nearest!r}?")
    return name


def _truth(value: object, field: str, key: object = None) -> bool | None:
    """A truth value, which stands at `key` of the field where there is one."""
    label = _label(value)
    if label is None:
        return None
    if not isinstance(label, int) or label not in (0, 1):
        raise wrong_type(field if key is None else f"{field}[{key!r}]", "true or false", plain(value))
    return bool(label)


def _label(value: object) -> Any:
    """A label as Python's own type: a truth value, an integer where it is a whole number; None where it is missing."""
    if isinstance(value, bool):
        return value
    value = plain(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if _is_missing_word(word):
            return None
        if word in _TRUTH_WORDS:
            return _TRUTH_WORDS[word]
        if _NUMBER.fullmatch(word):
            value = float(word)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def _is_missing_word(text: str) -> bool:
    return text.strip().lower() in _MISSING_WORDS
