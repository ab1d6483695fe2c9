"""The kinds of rows Castor learns from, and how a raw row becomes one.

Field names are those of PKU-SafeRLHF (preference rows) and BeaverTails (QA rows); `families` brings other data sets to
them. Only the texts are required: older releases lack some of the labels, and a label that is absent or null is `None`
here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from castor.data.rows.fields import History, categories, described, flag, history, integer, severity, text
from castor.data.rows.other_schemas import canonical
from castor.data.sources.record import RowError
from castor.taxonomy import BEAVERTAILS_CATEGORIES

Schema = Literal["preference", "qa"]
Key = tuple[str, ...]
"""What a row is a response to, the earlier turns first: rows of one key belong to one side of a split."""

_PAIR_IDS = range(2)
_CATEGORY_IDS = range(len(BEAVERTAILS_CATEGORIES))


class Exchange(NamedTuple):
    """What is tokenised: a prompt, its response, and the exchanges before."""

    prompt: str
    response: str
    history: History = ()


@dataclass(frozen=True)
class PromptRow:
    """A prompt without a response. `category` holds the harm categories it was written for."""

    prompt: str
    history: History = ()
    category: frozenset[str] | None = None

    @property
    def key(self) -> Key:
        """The earlier turns and the prompt."""
        return _key(self.history, self.prompt)


@dataclass(frozen=True)
class QARow:
    """A prompt with one response. `category` holds the harm categories that apply; `severity_level` is 0 to 3."""

    prompt: str
    response: str
    is_safe: bool | None = None
    category: frozenset[str] | None = None
    severity_level: int | None = None
    history: History = ()

    @property
    def key(self) -> Key:
        """The earlier turns and the prompt."""
        return _key(self.history, self.prompt)

    @property
    def exchange(self) -> Exchange:
        """The texts to tokenise."""
        return Exchange(self.prompt, self.response, self.history)


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
    history: History = ()

    @property
    def key(self) -> Key:
        """The earlier turns and the prompt."""
        return _key(self.history, self.prompt)

    @property
    def exchanges(self) -> tuple[Exchange, Exchange]:
        """The texts to tokenise, of response 0 and response 1."""
        first, second = (Exchange(self.prompt, answer, self.history) for answer in (self.response_0, self.response_1))
        return first, second

    def qa(self, response_id: int) -> QARow:
        """The prompt with response 0 or 1 and that response's labels."""
        if response_id == 0:
            labels = self.is_response_0_safe, self.response_0_harm_category, self.response_0_severity_level
            return QARow(self.prompt, self.response_0, *labels, self.history)
        labels = self.is_response_1_safe, self.response_1_harm_category, self.response_1_severity_level
        return QARow(self.prompt, self.response_1, *labels, self.history)


def detect_schema(raw: Mapping[str, Any]) -> Schema:
    """Tell the two kinds of rows apart by their fields. Raises RowError when the row is neither."""
    raw = canonical(raw)
    if "response_0" in raw or "response_1" in raw:
        return "preference"
    if "response" in raw:
        return "qa"
    raise RowError("missing field", f"neither response nor response_0 and response_1; {described(raw)}")


def parse_preference(raw: Mapping[str, Any]) -> PreferenceRow:
    """A preference row of any family; fields that mean nothing here are ignored. Raises RowError."""
    raw = canonical(raw)
    prompt = text(raw, "prompt", "empty prompt")
    response_0, response_1 = (text(raw, f"response_{i}", "empty response") for i in _PAIR_IDS)
    if response_0.strip() == response_1.strip():
        raise RowError("identical responses", "response_0 and response_1 are the same text")
    safe_0, safe_1 = (flag(raw, f"is_response_{i}_safe") for i in _PAIR_IDS)
    category_0, category_1 = (
        categories(raw, f"response_{i}_harm_category", f"is_response_{i}_safe") for i in _PAIR_IDS
    )
    severity_0, severity_1 = (severity(raw, f"response_{i}_severity_level") for i in _PAIR_IDS)
    better, safer = (integer(raw, f"{name}_response_id", _PAIR_IDS, "id out of range") for name in ("better", "safer"))
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
        history=history(raw),
    )


def parse_qa(raw: Mapping[str, Any]) -> QARow:
    """A QA row of any family; the categories stand in `category` or `harm_category`. Raises RowError."""
    raw = canonical(raw)
    return QARow(
        prompt=text(raw, "prompt", "empty prompt"),
        response=text(raw, "response", "empty response"),
        is_safe=flag(raw, "is_safe"),
        category=categories(raw, "category" if raw.get("category") is not None else "harm_category", "is_safe"),
        severity_level=severity(raw, "severity_level"),
        history=history(raw),
    )


def parse_prompt_row(raw: Mapping[str, Any]) -> PromptRow:
    """The prompt of a row of any kind. Of a row without a response also the category, as in BeaverTails-Evaluation.

    Raises RowError.
    """
    raw = canonical(raw)
    prompt, earlier = text(raw, "prompt", "empty prompt"), history(raw)
    if any(name in raw for name in ("response", "response_0", "response_1")):
        return PromptRow(prompt, earlier)
    written_for = categories(raw, "category", "is_safe")
    number = integer(raw, "category_id", _CATEGORY_IDS, "id out of range")
    if number is not None and written_for is not None and written_for != {BEAVERTAILS_CATEGORIES[number]}:
        raise RowError(
            "category_id contradicts the category", f"category_id {number} is {BEAVERTAILS_CATEGORIES[number]}"
        )
    return PromptRow(prompt, earlier, written_for)


def parse_prompt(raw: Mapping[str, Any]) -> str:
    """The prompt of a row of any kind, unchanged, without what was said before. Raises RowError."""
    return text(canonical(raw), "prompt", "empty prompt")


def _key(earlier: History, prompt: str) -> Key:
    return (*(turn for exchange in earlier for turn in exchange), prompt)
