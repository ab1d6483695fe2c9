"""Experience: finished responses, packed one after the other without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Experience:
    """N responses with their prompts, as the rollout worker that sampled them put them in the object store.

    T counts all tokens, R the response tokens; per-response-token arrays hold the responses one after the other.
    Arrays read from the object store are read-only views. Invariant: every response token has the log-probability
    and the policy version of the engine that sampled it; nothing is ever filled in.
    """

    uids: NDArray[np.int64]  # [N] which prompt and sample of the step this answers
    prompts: tuple[str, ...]  # [N] texts of the prompts, for whoever judges texts
    tokens: NDArray[np.int32]  # [T] prompt then response, sequence after sequence
    prompt_lengths: NDArray[np.int32]  # [N]
    response_lengths: NDArray[np.int32]  # [N], the end-of-text token included
    logprobs: NDArray[np.float32]  # [R] of the sampled tokens, under the distribution they were sampled from
    versions: NDArray[np.int32]  # [R] policy version that sampled the token
    truncated: NDArray[np.bool_]  # [N] cut at max_new_tokens, so without an end-of-text token

    def __post_init__(self) -> None:
        per_sequence = (self.prompts, self.prompt_lengths, self.response_lengths, self.truncated)
        if any(len(values) != len(self) for values in per_sequence):
            raise ValueError(
                f"{len(self)} uids, but {', '.join(str(len(values)) for values in per_sequence)} prompts, lengths and "
                "flags"
            )
        responses = int(self.response_lengths.sum())
        if len(self.tokens) != int(self.prompt_lengths.sum()) + responses:
            raise ValueError(f"{len(self.tokens)} tokens do not fill the stated prompt and response lengths")
        if len(self.logprobs) != responses or len(self.versions) != responses:
            raise ValueError("every response token needs a log-probability and a version")
        if len(self) and (self.response_lengths.min() < 1 or self.prompt_lengths.min() < 1):
            raise ValueError("an experience holds an empty prompt or an empty response")
        if not np.isfinite(self.logprobs).all():
            raise ValueError("a rollout log-probability is not finite")

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens per sequence, prompt and response."""
        return self.prompt_lengths.astype(np.int64) + self.response_lengths

    @property
    def groups(self) -> NDArray[np.int64]:
        """[N] responses to one prompt have the same number."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(prompt, row) for row, prompt in enumerate(self.prompts)], dtype=np.int64)

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> Experience:
        """The given sequences, in the given order."""
        picked = np.asarray(rows, dtype=np.int64)
        tokens = ragged_take(self.tokens, self.lengths, picked)
        return Experience(
            uids=self.uids[picked],
            prompts=tuple(self.prompts[row] for row in picked),
            tokens=tokens,
            prompt_lengths=self.prompt_lengths[picked],
            response_lengths=self.response_lengths[picked],
            logprobs=ragged_take(self.logprobs, self.response_lengths, picked),
            versions=ragged_take(self.versions, self.response_lengths, picked),
            truncated=self.truncated[picked],
        )

    @staticmethod
    def concatenate(parts: Sequence[Experience]) -> Experience:
        """One experience of all parts, in order. Raises ValueError when there are none."""
        if not parts:
            raise ValueError("no experience to concatenate")
        arrays = [field.name for field in fields(Experience) if field.name != "prompts"]
        return Experience(
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
        )


def ragged_take(values: NDArray, lengths: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray:
    """Pick rows of a ragged array: `values` [sum(lengths)] holds row after row.

    Returns a copy, in the order of `rows`.
    """
    if len(rows) == 0:
        return values[:0].copy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.concatenate([values[offsets[row] : offsets[row + 1]] for row in rows])
