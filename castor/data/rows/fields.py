"""Reading the fields of a raw row, and what makes one bad."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from castor.data.sources.record import Reason, RowError
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, Severity

History = tuple[tuple[str, str], ...]
"""Earlier exchanges of a conversation, oldest first: (what the user said, what the assistant answered)."""

_CATEGORIES = frozenset(BEAVERTAILS_CATEGORIES) | frozenset(PKU_CATEGORIES)
_TAXONOMIES = {len(names): names for names in (BEAVERTAILS_CATEGORIES, PKU_CATEGORIES)}
_SEVERITIES = range(len(Severity))
_KEYS_SHOWN = 8


def described(raw: Mapping[str, Any]) -> str:
    """The row's field names, for an error message."""
    shown = ", ".join(repr(str(key)) for key in list(raw)[:_KEYS_SHOWN])
    return f"the row has {shown or 'no fields'}" + (" and more" if len(raw) > _KEYS_SHOWN else "")


def wrong_type(field: str, wanted: str, value: object) -> RowError:
    """The error of a field whose value is of another type."""
    return RowError("wrong type", f"{field} is {type(value).__name__}, not {wanted}")


def text(raw: Mapping[str, Any], field: str, when_empty: Reason) -> str:
    """A text that must be there and must not be blank, unchanged. Raises RowError."""
    value = _value(raw, field)
    if value is None:
        raise RowError("missing field", f"{field} is absent or null; {described(raw)}")
    return checked_text(value, field, when_empty)


def checked_text(value: object, field: str, when_empty: Reason) -> str:
    """`value`, which must be a text that is not blank and that a tokenizer takes. Raises RowError."""
    if not isinstance(value, str):
        raise wrong_type(field, "a string", value)
    if not value.strip():
        raise RowError(when_empty, f"{field} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; no tokenizer takes it
        raise RowError("invalid text", f"{field} holds a lone surrogate at character {error.start}") from error
    return value


def history(raw: Mapping[str, Any]) -> History:
    """The field `history`: a list of [user, assistant] pairs; absent or null is an empty one. Raises RowError."""
    value = _value(raw, "history")
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise wrong_type("history", "a list of [user, assistant] pairs", value)
    turns: list[tuple[str, str]] = []
    for number, pair in enumerate(value):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise wrong_type(f"history[{number}]", "a [user, assistant] pair", pair)
        user = checked_text(pair[0], f"history[{number}][0]", "empty prompt")
        turns.append((user, checked_text(pair[1], f"history[{number}][1]", "empty response")))
    return tuple(turns)


def flag(raw: Mapping[str, Any], field: str) -> bool | None:
    """True, false, or None where it is absent or null. Raises RowError."""
    value = _value(raw, field)
    if value is not None and not isinstance(value, bool):
        raise wrong_type(field, "true or false", value)
    return value


def integer(raw: Mapping[str, Any], field: str, allowed: range, out_of_range: Reason) -> int | None:
    """An integer in `allowed`, or None where it is absent or null. Raises RowError."""
    value = _value(raw, field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(field, "an integer", value)
    if value not in allowed:
        raise RowError(out_of_range, f"{field} is {value}, not {allowed[0]} to {allowed[-1]}")
    return value


def severity(raw: Mapping[str, Any], field: str) -> int | None:
    """A severity level, or None where it is absent or null. Raises RowError."""
    return integer(raw, field, _SEVERITIES, "severity out of range")


def categories(raw: Mapping[str, Any], field: str, safe_field: str) -> frozenset[str] | None:
    """The harm categories that apply, or None where the field is absent or null. Raises RowError.

    Three spellings: an object of name: bool; a list of names (or one name); a list of 14 or 19 booleans in the order of
    BEAVERTAILS_CATEGORIES or PKU_CATEGORIES.

    `is_safe` must agree as far as the data sets' definitions go: no response is safe and in a harm category.
    BeaverTails also defines unsafe as being in one of its 14 categories (all of its rows agree); PKU-SafeRLHF's 19
    leave room for a harm outside the list.
    """
    value = _value(raw, field)
    if value is None:
        return None
    names, judged = _category_names(value, field)
    is_safe = flag(raw, safe_field)
    if is_safe and names:
        raise RowError(
            "is_safe contradicts the categories", f"{safe_field} is true, {field} has {', '.join(sorted(names))}"
        )
    if is_safe is False and not names and judged == frozenset(BEAVERTAILS_CATEGORIES):
        raise RowError("is_safe contradicts the categories", f"{safe_field} is false, {field} has none of the 14")
    return names


def _category_names(value: object, field: str) -> tuple[frozenset[str], frozenset[str]]:
    """The categories that hold, and all that were judged (empty where the spelling does not tell)."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        labels = {_known(name, field): _truth(holds, f"{field}[{name!r}]") for name, holds in value.items()}
        return frozenset(name for name, holds in labels.items() if holds), frozenset(labels)
    if not isinstance(value, Sequence):
        raise wrong_type(field, "an object of category names, a list of names or a list of booleans", value)
    if all(isinstance(item, str) for item in value):
        return frozenset(_known(item, field) for item in value), frozenset()
    holds = [_truth(item, f"{field}[{index}]") for index, item in enumerate(value)]
    taxonomy = _TAXONOMIES.get(len(holds))
    if taxonomy is None:
        wanted = " or ".join(str(width) for width in _TAXONOMIES)
        raise RowError("label vector of the wrong width", f"{field} has {len(holds)} labels, not {wanted}")
    return frozenset(name for name, held in zip(taxonomy, holds, strict=True) if held), frozenset(taxonomy)


def _known(name: object, field: str) -> str:
    if not isinstance(name, str) or name not in _CATEGORIES:
        raise RowError("unknown category", f"{field} names {name!r}")
    return name


def _truth(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise _nan(field) if _is_nan(value) else wrong_type(field, "true or false", value)
    return value


def _value(raw: Mapping[str, Any], field: str) -> Any:
    value = raw.get(field)
    if _is_nan(value):
        raise _nan(field)
    return value


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _nan(field: str) -> RowError:
    return RowError("NaN value", f"{field} is NaN; a label that is not known is null")
