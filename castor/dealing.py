"""Dealing sequences to ranks and micro-batches. Pure functions of lengths.

Every rank computes the same plan from the same lengths, so nothing has to be agreed on the wire.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BUNDLES = 4  # of a rank, at least: bundles of sequences that stay together
WORTH = 0.2  # of all tokens have to be shared: attention to what is shared takes longer


def partition(lengths: Sequence[int] | NDArray[np.integer], parts: int) -> list[list[int]]:
    """Deal sequences to `parts` shares of equal count (±1) whose token sums are close; deterministic.

    Longest first, each to the lightest share that still has room. Indices within a share are in ascending order.
    """
    if parts < 1:
        raise ValueError(f"cannot deal sequences to {parts} shares")
    order = sorted(range(len(lengths)), key=lambda i: (-int(lengths[i]), i))
    base, extra = divmod(len(order), parts)
    room = [base + (part < extra) for part in range(parts)]
    shares: list[list[int]] = [[] for _ in range(parts)]
    heap = [(0, part) for part in range(parts) if room[part]]
    for index in order:
        load, part = heapq.heappop(heap)
        shares[part].append(index)
        if len(shares[part]) < room[part]:
            heapq.heappush(heap, (load + int(lengths[index]), part))
    return [sorted(share) for share in shares]


def micro_batches(
    lengths: Sequence[int] | NDArray[np.integer], shares: Sequence[Sequence[int]], budget: int
) -> list[list[list[int]]]:
    """Cut each rank's share into micro-batches of at most `budget` tokens, the same number on every rank.

    ZeRO runs collectives in every backward pass, so all ranks must run equally many: each share is dealt into as
    many balanced pieces as the most loaded share needs. A sequence longer than the budget is a micro-batch of its
    own; a rank with fewer sequences than pieces gets empty ones. Returns [rank][micro-batch] -> sequence indices.
    """
    count = max((_pieces([int(lengths[i]) for i in share], budget) for share in shares), default=0)
    plan = []
    for share in shares:
        dealt = partition([lengths[i] for i in share], count) if count else []
        plan.append([[share[i] for i in piece] for piece in dealt])
    return plan


def _pieces(lengths: list[int], budget: int) -> int:
    """Fewest balanced pieces such that each has at most `budget` tokens, or is a single sequence."""
    if not lengths:
        return 0
    for pieces in range(max(1, -(-sum(lengths) // budget)), len(lengths) + 1):
        dealt = partition(lengths, pieces)
        if all(len(piece) == 1 or sum(lengths[i] for i in piece) <= budget for piece in dealt):
            return pieces
    return len(lengths)


def deal(
    lengths: Sequence[int] | NDArray[np.integer],
    ranks: int,
    budget: int,
    groups: Sequence[int] | NDArray[np.integer] | None = None,
) -> list[list[list[int]]]:
    """`micro_batches` of balanced shares of all sequences: [rank][micro-batch] -> sequence indices, in order.

    Sequences of one of the `groups` [N] begin alike, as responses to a prompt do. They go together, so that a model
    that can computes the beginning once (`castor.packing.find_shared`); in bundles of at most half the `budget` and a
    quarter of a rank's tokens, which fill micro-batches and ranks evenly.
    """
    bundles = [[i] for i in range(len(lengths))] if groups is None else _bundles(lengths, ranks, budget, groups)
    sums = [sum(int(lengths[i]) for i in bundle) for bundle in bundles]
    plan = micro_batches(sums, partition(sums, ranks), budget)
    return [[sorted(i for bundle in piece for i in bundles[bundle]) for piece in pieces] for pieces in plan]


def _bundles(
    lengths: Sequence[int] | NDArray[np.integer], ranks: int, budget: int, groups: Sequence[int] | NDArray[np.integer]
) -> list[list[int]]:
    """Sequences that stay together, in the order of the first of each."""
    limit = min(budget // 2, int(sum(lengths)) // (ranks * BUNDLES))
    bundles: list[list[int]] = []
    open_: dict[int, tuple[int, int]] = {}  # group -> its last bundle, and the tokens in it
    for index, group in enumerate(int(group) for group in groups):
        length = int(lengths[index])
        bundle, held = open_.get(group, (-1, limit))
        if held + length > limit:
            bundle, held = len(bundles), 0
            bundles.append([])
        bundles[bundle].append(index)
        open_[group] = (bundle, held + length)
    return bundles
