"""The two kinds of rows Castor learns from, and what makes a raw row a bad one.

Field names are those of PKU-SafeRLHF (preference rows) and BeaverTails (QA rows). Only the texts are required: older
releases lack some of the labels, and a label that is absent or null is `None` here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES, Severity

Schema = Literal["preference", "qa"]
Reason = Literal[
    "malformed line",
    "missing field",
    "wrong type",
    "invalid text",
    "empty prompt",
    "empty response",
    "identical responses",
    "unknown category",
    "id out of range",
    "severity out of range",
    "safer response is the unsafe one",
    "is_safe contradicts the categories",
    "missing label",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

_CATEGORIES = frozenset(BEAVERTAILS_CATEGORIES) | frozenset(PKU_CATEGORIES)
_SEVERITIES = range(len(Severity))
_PAIR_IDS = range(2)
_KEYS_SHOWN = 8


class RowError(ValueError):
    """One row cannot be used. `reason` is one of REASONS and is counted; `detail` says what this row has."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class QARow:
    """A prompt with one response. `category` holds the harm categories that apply; `severity_level` is 0 to 3."""

    prompt: str
    response: str
    is_safe: bool | None = None
    category: frozenset[str] | None = None
    severity_level: int | None = None


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt with two responses. `better_response_id`: the more helpful; `safer_response_id`: the less harmful."""

    prompt: str
    response_0: str
    response_1: str
    is_response_0_safe: bool | None = None
    is_response_1_safe: bool | None = None
    response_0_harm_category: frozenset[str] | None = None
    response_1_harm_category: frozenset[str] | None = None
    response_0_severity_level: int | None = None
    response_1_severity_level: int | None = None
    better_response_id: int | None = None
    safer_response_id: int | None = None

    def qa(self, response_id: int) -> QARow:
        """The prompt with response 0 or 1 and that response's labels."""
        if response_id == 0:
            labels = self.is_response_0_safe, self.response_0_harm_category, self.response_0_severity_level
            return QARow(self.prompt, self.response_0, *labels)
        labels = self.is_response_1_safe, self.response_1_harm_category, self.response_1_severity_level
        return QARow(self.prompt, self.response_1, *labels)


def detect_schema(raw: Mapping[str, Any]) -> Schema:
    """Tell the two kinds of rows apart by their fields. Raises RowError when the row is neither."""
    if "response_0" in raw or "response_1" in raw:
        return "preference"
    if "response" in raw:
        return "qa"
    raise RowError("missing field", f"neither response nor response_0 and response_1; {_fields(raw)}")


def parse_preference(raw: Mapping[str, Any]) -> PreferenceRow:
    """A preference row from PKU-SafeRLHF's fields; other fields are ignored. Raises RowError."""
    prompt = parse_prompt(raw)
    response_0, response_1 = (_text(raw, f"response_{i}", "empty response") for i in _PAIR_IDS)
    if response_0.strip() == response_1.strip():
        raise RowError("identical responses", "response_0 and response_1 are the same text")
    safe_0, safe_1 = (_flag(raw, f"is_response_{i}_safe") for i in _PAIR_IDS)
    category_0, category_1 = (
        _categories(raw, f"response_{i}_harm_category", f"is_response_{i}_safe") for i in _PAIR_IDS
    )
    severity_0, severity_1 = (_severity(raw, f"response_{i}_severity_level") for i in _PAIR_IDS)
    better, safer = (_integer(raw, f"{name}_response_id", _PAIR_IDS, "id out of range") for name in ("better", "safer"))
    if (safer, safe_0, safe_1) in ((0, False, True), (1, True, False)):
        raise RowError("safer response is the unsafe one", f"safer_response_id is {safer}, which is labelled unsafe")
    return PreferenceRow(
        prompt=prompt,
        response_0=response_0,
        response_1=response_1,
        is_response_0_safe=safe_0,
        is_response_1_safe=safe_1,
        response_0_harm_category=category_0,
        response_1_harm_category=category_1,
        response_0_severity_level=severity_0,
        response_1_severity_level=severity_1,
        better_response_id=better,
        safer_response_id=safer,
    )


def parse_qa(raw: Mapping[str, Any]) -> QARow:
    """A QA row from BeaverTails' fields (`category`) or PKU-SafeRLHF-QA's (`harm_category`). Raises RowError."""
    category_field = "category" if raw.get("category") is not None else "harm_category"
    return QARow(
        prompt=parse_prompt(raw),
        response=_text(raw, "response", "empty response"),
        is_safe=_flag(raw, "is_safe"),
        category=_categories(raw, category_field, "is_safe"),
        severity_level=_severity(raw, "severity_level"),
    )


def parse_prompt(raw: Mapping[str, Any]) -> str:
    """The prompt of a row of any kind, unchanged. Raises RowError."""
    return _text(raw, "prompt", "empty prompt")


def _fields(raw: Mapping[str, Any]) -> str:
    shown = ", ".join(repr(str(key)) for key in list(raw)[:_KEYS_SHOWN])
    return f"the row has {shown or 'no fields'}" + (" and more" if len(raw) > _KEYS_SHOWN else "")


def _text(raw: Mapping[str, Any], field: str, when_empty: Reason) -> str:
    value = raw.get(field)
    if value is None:
        raise RowError("missing field", f"{field} is absent or null; {_fields(raw)}")
    if not isinstance(value, str):
        raise _wrong_type(field, "a string", value)
    if not value.strip():
        raise RowError(when_empty, f"{field} is blank")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; no tokenizer takes it
        raise RowError("invalid text", f"{field} holds a lone surrogate at character {error.start}") from error
    return value


def _flag(raw: Mapping[str, Any], field: str) -> bool | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(field, "true or false", value)
    return value


def _integer(raw: Mapping[str, Any], field: str, allowed: range, out_of_range: Reason) -> int | None:
    value = raw.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(field, "an integer", value)
    if value not in allowed:
        raise RowError(out_of_range, f"{field} is {value}, not {allowed[0]} to {allowed[-1]}")
    return value


def _severity(raw: Mapping[str, Any], field: str) -> int | None:
    return _integer(raw, field, _SEVERITIES, "severity out of range")


def _categories(raw: Mapping[str, Any], field: str, safe_field: str) -> frozenset[str] | None:
    """The names that are true. `is_safe` must agree with them as far as the data sets' definitions go.

    No response is safe and in a harm category. BeaverTails also defines unsafe as being in one of its 14 categories
    (all of its rows agree); PKU-SafeRLHF's 19 leave room for a harm outside the list.
    """
    value = raw.get(field)
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _wrong_type(field, "an object of category names", value)
    for name, holds in value.items():
        if name not in _CATEGORIES:
            raise RowError("unknown category", f"{field} names {name!r}")
        if not isinstance(holds, bool):
            raise _wrong_type(f"{field}[{name!r}]", "true or false", holds)
    names = frozenset(name for name, holds in value.items() if holds)
    is_safe = _flag(raw, safe_field)
    if is_safe and names:
        raise RowError(
            "is_safe contradicts the categories", f"{safe_field} is true, {field} has {', '.join(sorted(names))}"
        )
    if is_safe is False and not names and value.keys() == frozenset(BEAVERTAILS_CATEGORIES):
        raise RowError("is_safe contradicts the categories", f"{safe_field} is false, {field} has none of the 14")
    return names


def _wrong_type(field: str, wanted: str, value: object) -> RowError:
    return RowError("wrong type", f"{field} is {type(value).__name__}, not {wanted}")
