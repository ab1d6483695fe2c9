"""The kinds of rows Castor learns from, and how a raw row becomes one.

Field names are those of PKU-SafeRLHF (preference rows) and BeaverTails (QA rows); readings.py finds the texts of other
data sets. Only the texts are required: older releases lack some of the labels, and a label that is missing is `None`
here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from castor.data.rows.fields import History, categories, checked_text, described, flag, integer, severity
from castor.data.rows.readings import Reading, half_of_a_pair, read_fields
from castor.data.sources.record import RowError
from castor.taxonomy import BEAVERTAILS_CATEGORIES

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

    def answers(self) -> "tuple[QARow, ...]":
        """Every response of the row with its labels: itself."""
        return (self,)


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

    def answers(self) -> tuple[QARow, ...]:
        """Every response of the row with its labels: both."""
        return self.qa(0), self.qa(1)


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

    def answers(self) -> tuple[QARow, ...]:
        """Every response of the row with its labels: none."""
        return ()


AnyRow = PreferenceRow | QARow | PromptRow


def parse_row(raw: Mapping[str, Any]) -> AnyRow:
    """The richest row that a raw row holds: a pair of responses, else one response, else a prompt.

    Fields that mean nothing here are ignored. Raises RowError.
    """
    reading = read_fields(raw)
    match len(reading.responses):
        case 2:
            return _preference(reading)
        case 1:
            return _answer(reading)
    if (half := half_of_a_pair(raw)) is not None:
        raise RowError("missing field", f"{half[1]} is absent or null beside {half[0]}; {described(raw)}")
    return _prompt(reading)


def parse_prompt_row(raw: Mapping[str, Any]) -> PromptRow:
    """The prompt of a row of any kind, whatever its responses are. Raises RowError."""
    return _prompt(read_fields(raw))


def _preference(reading: Reading) -> PreferenceRow:
    prompt, labels = checked_text(reading.prompt, "prompt", "empty prompt"), reading.labels
    response_0, response_1 = (
        checked_text(response, f"response_{i}", "empty response") for i, response in enumerate(reading.responses)
    )
    if response_0.strip() == response_1.strip():
        raise RowError("identical responses", "response_0 and response_1 are the same text")
    safe_0, safe_1 = (flag(labels, f"is_response_{i}_safe") for i in _PAIR_IDS)
    category_0, category_1 = (
        categories(labels, f"response_{i}_harm_category", f"is_response_{i}_safe") for i in _PAIR_IDS
    )
    severity_0, severity_1 = (severity(labels, f"response_{i}_severity_level") for i in _PAIR_IDS)
    better, safer = (
        integer(labels, f"{name}_response_id", _PAIR_IDS, "id out of range") for name in ("better", "safer")
    )
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
        history=reading.history,
    )


def _answer(reading: Reading) -> QARow:
    """The categories stand in `category`, as in BeaverTails, or in `harm_category`, as in PKU-SafeRLHF-QA."""
    labels = reading.labels
    category = categories(labels, "category", "is_safe")
    return QARow(
        prompt=checked_text(reading.prompt, "prompt", "empty prompt"),
        response=checked_text(reading.responses[0], "response", "empty response"),
        is_safe=flag(labels, "is_safe"),
        category=categories(labels, "harm_category", "is_safe") if category is None else category,
        severity_level=severity(labels, "severity_level"),
        history=reading.history,
    )


def _prompt(reading: Reading) -> PromptRow:
    """Of a row without a response also the category, as in BeaverTails-Evaluation."""
    prompt, labels = checked_text(reading.prompt, "prompt", "empty prompt"), reading.labels
    if reading.responses:
        return PromptRow(prompt, reading.history)
    written_for = categories(labels, "category", "is_safe")
    number = integer(labels, "category_id", _CATEGORY_IDS, "id out of range")
    if number is not None and written_for is not None and written_for != {BEAVERTAILS_CATEGORIES[number]}:
        raise RowError(
            "category_id contradicts the category", f"category_id {number} is {BEAVERTAILS_CATEGORIES[number]}"
        )
    return PromptRow(prompt, reading.history, written_for)


def _key(earlier: History, prompt: str) -> Key:
    return (*(turn for exchange in earlier for turn in exchange), prompt)
