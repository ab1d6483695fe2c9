"""Prompts that two sets of rows share, exactly or but for case, whitespace and punctuation.

A prompt here is a row's key: what the response answers, the earlier turns of the conversation first.
"""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass, field

from castor.data.rows.schemas import Key

_APOSTROPHES = frozenset("'’‘`´ʼ")


class _Folding(dict[int, str]):
    """A translation table made as characters turn up: apostrophes vanish, other punctuation becomes a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        breaks = unicodedata.category(character)[0] in "PSZC"
        self[code] = "" if character in _APOSTROPHES else " " if breaks else character
        return self[code]


_FOLDING = _Folding()


def normalise(text: str) -> str:
    """`text` without differences of case, width, whitespace, punctuation and symbols.

    A text of nothing but those is returned as it is, so that "?" and "!" stay different.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_FOLDING)
    return " ".join(folded.split()) or text


def digest(*texts: str) -> bytes:
    """16 bytes that stand for the texts, so that an index of prompts does not hold the prompts."""
    state = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8")
        state.update(len(data).to_bytes(8, "little") + data)
    return state.digest()


def prompt_digest(key: Key) -> bytes:
    """Stands for a row's key; the same for keys that differ only in case, whitespace and punctuation."""
    return digest(*(normalise(turn) for turn in key))


class PromptIndex:
    """The distinct prompts of one set and where each was first seen. Memory grows with distinct prompts only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.exact: dict[bytes, str] = {}
        self.normalised: dict[bytes, str] = {}

    def add(self, key: Key, location: str) -> None:
        """Take in the key of a row."""
        self.exact.setdefault(digest(*key), location)
        self.normalised.setdefault(prompt_digest(key), location)


@dataclass
class Leak:
    """What one set shares with an earlier one (`with_name`). Feed it every row of the set, in order, through `look`."""

    name: str
    with_name: str
    rows: int = 0  # rows of the set whose prompt is shared after normalising
    prompts: list[dict[str, str]] = field(default_factory=list)  # each distinct shared prompt, as the set writes it
    _seen: set[bytes] = field(default_factory=set)

    @property
    def exact(self) -> int:
        """Distinct prompts shared letter by letter."""
        return sum(shared["match"] == "exact" for shared in self.prompts)

    @property
    def normalised(self) -> int:
        """Distinct prompts shared after normalising, the exact ones among them."""
        return len(self.prompts)

    def look(self, key: Key, location: str, earlier: PromptIndex) -> None:
        """Note whether `earlier` has the key of this row."""
        near = earlier.normalised.get(prompt_digest(key))
        if near is None:
            return
        self.rows += 1
        exactly = digest(*key)
        if exactly in self._seen:
            return
        self._seen.add(exactly)
        same = earlier.exact.get(exactly)
        self.prompts.append(
            {
                "prompt": key[-1],
                "location": location,
                "shared_with": near if same is None else same,
                "match": "normalised" if same is None else "exact",
            }
        )
