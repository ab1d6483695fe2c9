"""Endless, reshuffled, resumable batches of indices: the order in which supervised stages visit their rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def batches(rows: int, batch_size: int, seed: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Index batches from batch number `start` on; each epoch is a fresh permutation, its short rest is left out.

    A function of (rows, batch_size, seed) only, so a resumed run continues where it stopped by its step count alone.
    Raises ValueError when there are fewer rows than a batch needs.
    """
    per_epoch = rows // batch_size
    if per_epoch == 0:
        raise ValueError(f"{rows} rows are fewer than one batch of {batch_size}")
    number = start
    while True:
        epoch, position = divmod(number, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        while position < per_epoch:
            yield order[position * batch_size : (position + 1) * batch_size]
            position, number = position + 1, number + 1
