"""What an RLHF run has trained on, response by response, and the proof that it was everything exactly once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from castor.io.errors import CastorError


@dataclass(frozen=True)
class Entry:
    """One step. `responses` are those of its batch in the order in which they were dealt: number of the prompt, of the
    sample, and the oldest and the newest version that sampled a token. `aside` are the prompts that were set aside, for
    good, since the step before.
    """

    step: int
    responses: tuple[tuple[int, int, int, int], ...]
    aside: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Entry:
        """What `to_json` returned. Raises CastorError for anything else."""
        try:
            responses = tuple((int(p), int(s), int(o), int(n)) for p, s, o, n in values["responses"])
            return cls(int(values["step"]), responses, tuple(int(prompt) for prompt in values.get("aside", ())))
        except (KeyError, TypeError, ValueError):
            raise CastorError(f"the ledger has a line that is none of its own: {str(values)[:80]}") from None


@dataclass(frozen=True)
class Terms:
    """What a ledger is held against."""

    prompts: int  # there are
    prompts_per_step: int
    samples_per_prompt: int
    max_staleness: int

    @classmethod
    def from_json(cls, values: Any) -> Terms:
        """What `asdict` made of them. Raises CastorError for anything else."""
        try:
            terms = cls(**{name: int(value) for name, value in values.items()})
        except (AttributeError, TypeError, ValueError):
            terms = None
        if terms is None or min(terms.prompts, terms.prompts_per_step, terms.samples_per_prompt) < 1:
            raise CastorError(f"these are no terms of a ledger: {str(values)[:80]}")
        return terms


def check_ledger(entries: Iterable[Entry], terms: Terms) -> int:
    """The number of steps. Raises CastorError unless every step from 1 on is there once, in order; every prompt of a
    step has all its samples once; every epoch has every prompt once that is not set aside; and no token is older than
    max_staleness allows.
    """
    step, aside, left = 0, set[int](), set(range(terms.prompts))  # of the epoch
    for entry in entries:
        step += 1
        if entry.step != step:
            raise CastorError(f"the ledger has step {entry.step} where step {step} should be")
        aside |= set(entry.aside)
        left -= aside
        for prompt in _prompts(entry, terms):
            left = left or set(range(terms.prompts)) - aside
            if prompt not in left:
                why = "was set aside before" if prompt in aside else "was dealt twice in the epoch of"
                raise CastorError(f"prompt {prompt} {why} step {step}")
            left.remove(prompt)
        _check_versions(entry, terms)
    return step


def _prompts(entry: Entry, terms: Terms) -> list[int]:
    """The prompts of a step, in the order in which they were dealt."""
    samples: dict[int, list[int]] = {}
    for prompt, sample, *_ in entry.responses:
        samples.setdefault(prompt, []).append(sample)
    wanted = list(range(terms.samples_per_prompt))
    for prompt, found in samples.items():
        if sorted(found) != wanted:
            raise CastorError(
                f"step {entry.step} was trained on the samples {sorted(found)} of prompt {prompt}, not {wanted}"
            )
    if len(samples) != terms.prompts_per_step:
        raise CastorError(f"step {entry.step} was trained on {len(samples)} prompts, not {terms.prompts_per_step}")
    return list(samples)


def _check_versions(entry: Entry, terms: Terms) -> None:
    newest, oldest = entry.step - 1, entry.step - 1 - terms.max_staleness
    for prompt, sample, first, last in entry.responses:
        if not oldest <= first <= last <= newest:
            raise CastorError(
                f"step {entry.step} was trained on sample {sample} of prompt {prompt}, of the versions {first} to "
                f"{last}: versions from {max(oldest, 0)} to {newest} are allowed"
            )
