"""What is computed of a step whose prompts have several responses: tokens by the plan of micro-batches, no clock.

`python -m benchmarks.shared_beginnings`. Responses arrive in any order, with lengths geometric around their mean. They
are dealt to ranks and micro-batches sequence by sequence, or with those of a prompt together (`castor.packing.deal`),
and each micro-batch computes what its sequences begin with once where that pays (`find_shared`). Told are the tokens
computed, of all, and those of the rank with most, for which the others wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castor.dealing import deal
from castor.packing import find_shared

VOCABULARY = 32_000


@dataclass(frozen=True)
class Step:
    """Of an RLHF run."""

    prompts: int
    samples: int  # of each
    prompt_tokens: int
    mean_response: int
    ranks: int
    budget: int  # tokens of a micro-batch


STEPS = (
    Step(64, 4, 55, 19, 1, 8192),
    Step(64, 8, 250, 300, 4, 8192),
    Step(128, 8, 250, 300, 8, 8192),
    Step(64, 16, 500, 500, 8, 16384),
)


def sample(step: Step) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Sequences in the order in which they were finished, and which prompt each answers."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, VOCABULARY, (step.prompts, step.prompt_tokens))
    answered = rng.permutation(step.prompts * step.samples) // step.samples
    lengths = np.minimum(rng.geometric(1 / step.mean_response, len(answered)), 3 * step.mean_response)
    sequences = [
        np.concatenate([prompts[prompt], rng.integers(0, VOCABULARY, length)])
        for prompt, length in zip(answered, lengths, strict=True)
    ]
    return sequences, answered


def computed(sequences: Sequence[NDArray[np.int64]], plan: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """Tokens that each rank computes."""
    lengths, found = np.array([len(sequence) for sequence in sequences]), []
    for pieces in plan:
        shared = [
            (piece, find_shared(np.concatenate([sequences[i] for i in piece]), lengths[piece])) for piece in pieces
        ]
        found.append(sum(int(lengths[piece].sum()) if each is None else len(each.own) for piece, each in shared))
    return found


def main() -> None:
    """Print a line for every step and way of dealing."""
    for step in STEPS:
        sequences, answered = sample(step)
        lengths = np.array([len(sequence) for sequence in sequences])
        print(step)
        for name, groups in (("one by one", None), ("with those of a prompt", answered)):
            plan = deal(lengths, step.ranks, step.budget, groups)
            tokens, all_of = computed(sequences, plan), int(lengths.sum())
            print(
                f"  {name:22}  {len(plan[0])} micro-batches a rank; computed {sum(tokens) / all_of:.2f} of the tokens, "
                f"by the rank with most {max(tokens) * step.ranks / all_of:.2f} of its share"
            )


if __name__ == "__main__":
    main()
