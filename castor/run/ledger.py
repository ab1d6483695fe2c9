"""What an RLHF run has trained on, response by response, and the proof that it was everything exactly once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from castor.io.errors import CastorError


@dataclass(frozen=True)
class Entry:
    """One step. `responses` are those of its batch in the order in which they were dealt: number of the prompt, of the
    sample, and the oldest and the newest version that sampled a token.
    """

    step: int
    responses: tuple[tuple[int, int, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Entry:
        """What `to_json` returned. Raises CastorError for anything else."""
        try:
            return cls(
                int(values["step"]), tuple((int(p), int(s), int(o), int(n)) for p, s, o, n in values["responses"])
            )
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
    step has all its samples once; every epoch has every prompt once; and no token is older than max_staleness allows.
    """
    step, dealt = 0, list[int]()
    for entry in entries:
        step += 1
        if entry.step != step:
            raise CastorError(f"the ledger has step {entry.step} where step {step} should be")
        dealt += _prompts(entry, terms)
        _check_versions(entry, terms)
        while len(dealt) >= terms.prompts:
            epoch, dealt = dealt[: terms.prompts], dealt[terms.prompts :]
            _check_epoch(epoch, step)
    _check_epoch(dealt, step)
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


def _check_epoch(prompts: list[int], step: int) -> None:
    """Of the epoch, or the beginning of one, that was dealt up to `step`."""
    seen: set[int] = set()
    for prompt in prompts:
        if prompt in seen:
            raise CastorError(f"prompt {prompt} was dealt twice in the epoch that step {step} belongs to")
        seen.add(prompt)
