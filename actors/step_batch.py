"""One step's experience as references into the object store: all the driver holds, and how an actor reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

READ_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class StepBatch:
    """One step's experience, chunk by chunk in the order of their first uid.

    Per-response-token arrays of chunk i are flat, in the order of experience i.
    """

    experience: list[Any]  # refs to Experience
    reference: list[Any]  # refs to reference log-probabilities, float32 [R_i]
    scores: dict[str, list[Any]]  # per signal: refs to float32 [N_i]
    step: int = 0
    attempt: int = 0  # of the run, after gradients that were not finite: decides samples and mini-batches with the seed


def read(refs: Sequence[Any]) -> list[Any]:
    """The objects behind refs that travelled inside a dataclass (Ray resolves only direct arguments)."""
    return ray.get(list(refs), timeout=READ_TIMEOUT_S)
