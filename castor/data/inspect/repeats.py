"""Rows that say the same thing twice, and texts that carry contradictory labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

from castor.data.inspect.leaks import digest, normalise, prompt_digest
from castor.data.rows.load import GoodRow
from castor.data.rows.schemas import AnyRow, PreferenceRow, QARow

_EXCERPT = 200

ANSWER_LABELS = ("is_safe", "category", "severity_level")
PAIR_LABELS = ("better_response_id", "safer_response_id")


class Repeats:
    """Counts over one set; feed it every row in order. Memory grows with the number of distinct texts, not their size.

    A pair with its responses swapped is the same pair. A text is a prompt with one response (or with two, for pairs).
    """

    def __init__(self) -> None:
        self.rows = 0
        self.answers = 0
        self.contradictions: list[dict[str, Any]] = []  # each contradicted text once a label, with both places
        self.duplicates: list[dict[str, Any]] = []  # each row that repeats an earlier one, with both places
        self._exact: dict[bytes, str] = {}
        self._normalised: dict[bytes, str] = {}
        self._labels: dict[bytes, list[tuple[Any, str] | None]] = {}  # per label: the first value seen, and where
        self._answers: set[bytes] = set()
        self._contradicted: set[tuple[bytes, str]] = set()

    @property
    def exact_duplicates(self) -> int:
        """Rows whose texts an earlier row had letter by letter."""
        return self.rows - len(self._exact)

    @property
    def normalised_duplicates(self) -> int:
        """Rows whose texts an earlier row had, but for case, whitespace and punctuation; exact ones are among them."""
        return self.rows - len(self._normalised)

    @property
    def repeated_answers(self) -> int:
        """Responses that an earlier row, or the same one, gave to the same prompt."""
        return self.answers - len(self._answers)

    def contradicted(self) -> Counter[str]:
        """Texts with contradictory labels, by label."""
        return Counter(label for _, label in self._contradicted)

    def add(self, good: GoodRow[AnyRow]) -> None:
        """Take in one row."""
        self.rows += 1
        texts = sorted(answer.response for answer in good.row.answers())
        pair = digest(*good.row.key) + digest(*texts)
        self._note_duplicate(pair, prompt_digest(good.row.key) + digest(*sorted(map(normalise, texts))), good)
        for answer in good.row.answers():
            self.answers += 1
            key = digest(*answer.key) + digest(answer.response)
            self._answers.add(key)
            self._compare(key, answer, ANSWER_LABELS, [getattr(answer, label) for label in ANSWER_LABELS], good)
        if isinstance(good.row, PreferenceRow):
            self._compare(pair, good.row, PAIR_LABELS, _chosen_texts(good.row), good)

    def _note_duplicate(self, exact: bytes, normalised: bytes, good: GoodRow[AnyRow]) -> None:
        first = self._exact.setdefault(exact, good.location)
        near = self._normalised.setdefault(normalised, good.location)
        if near == good.location:
            return
        same = first != good.location
        self.duplicates.append(
            {
                "match": "exact" if same else "normalised",
                "location": good.location,
                "first_location": first if same else near,
                **_excerpts(good.row),
            }
        )

    def _compare(
        self, key: bytes, row: QARow | PreferenceRow, names: tuple[str, ...], values: list[Any], good: GoodRow[AnyRow]
    ) -> None:
        known = self._labels.setdefault(key, [None] * len(names))
        for index, (name, value) in enumerate(zip(names, values, strict=True)):
            first = known[index]
            if value is None:
                continue
            if first is None:
                known[index] = value, good.location
            elif first[0] != value and (key, name) not in self._contradicted:
                self._contradicted.add((key, name))
                self.contradictions.append(
                    {
                        "label": name,
                        "location": good.location,
                        "value": _plain(value),
                        "first_location": first[1],
                        "first_value": _plain(first[0]),
                        **_excerpts(row),
                    }
                )


def _chosen_texts(row: PreferenceRow) -> list[int | None]:
    """The preferred responses by their place in the sorted pair, which does not change when the pair is swapped."""
    swapped = row.response_0 > row.response_1
    ids = row.better_response_id, row.safer_response_id
    return [None if chosen is None else chosen ^ swapped for chosen in ids]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


def _excerpts(row: AnyRow) -> dict[str, str]:
    """The row's texts, shortened; a pair's responses sorted, as its values in `contradictions` count them."""
    texts = {"prompt": row.prompt}
    if isinstance(row, PreferenceRow):
        texts["response_0"], texts["response_1"] = sorted((row.response_0, row.response_1))
    elif isinstance(row, QARow):
        texts["response"] = row.response
    return {name: text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…" for name, text in texts.items()}
