"""How the ranks of a group share one step's experience: who works on what, micro-batches, common results, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from castor.config.learner import Learner
from castor.config.training import Engine
from castor.dealing import deal
from castor.experience import Experience, ragged_take
from castor.packing import PackedRows, pack_rows
from castor.scoring.frozen import in_micro_batches, require_finite


def order_seed(seed: int, step: int, attempt: int) -> tuple[int, ...]:
    """What decides the mini-batches of a step; another attempt of a run takes others."""
    return (seed, step, attempt) if attempt else (seed, step)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Let the random numbers of a step (dropout) follow from seed, step and rank, so that no state has to be kept."""
    sequence = np.random.SeedSequence([seed, step, rank])
    torch.manual_seed(int(sequence.generate_state(1)[0]))


@dataclass(frozen=True)
class MiniBatch:
    """A rank's share of one optimiser step, cut into micro-batches; totals are over all ranks."""

    micro: list[NDArray[np.int64]]  # sequence indices into the step's experience
    sequences: int
    tokens: int


def plan_mini_batches(
    experience: Experience, learner: Learner, engine: Engine, *, rank: int, world_size: int, seed: Sequence[int]
) -> Iterator[MiniBatch]:
    """This rank's part of every optimiser step that one step's experience is used for, in order.

    A function of lengths, prompts and seed only: all ranks, and the learner and the critics, agree on the mini-batches.
    Prompts are shuffled, and the responses to each stay together but for where mini-batches are cut.
    """
    lengths, groups = experience.lengths, experience.groups
    for iteration in range(learner.update_iters):
        order = np.arange(len(experience))
        if learner.mini_batches > 1:
            order = _shuffled(groups, [*seed, iteration])
        for chosen in np.array_split(order, learner.mini_batches):
            pieces = deal(lengths[chosen], world_size, engine.micro_batch_tokens, groups[chosen])[rank]
            yield MiniBatch(
                [chosen[np.asarray(piece, dtype=np.int64)] for piece in pieces],
                len(chosen),
                int(experience.response_lengths[chosen].sum()),
            )


def _shuffled(groups: NDArray[np.int64], seed: Sequence[int]) -> NDArray[np.int64]:
    """Indices of all sequences, group by group [N]."""
    drawn, group = np.unique(groups, return_inverse=True)
    place = np.argsort(np.random.default_rng(seed).permutation(len(drawn)))
    return np.argsort(place[group], kind="stable")


@dataclass(frozen=True)
class MicroBatch:
    """Some sequences ready for a forward pass, with their per-response-token arrays as flat tensors [R]."""

    rows: PackedRows
    response_positions: torch.Tensor  # [R] int64 flat positions of the response tokens; predecessors are at -1
    last_positions: torch.Tensor  # [N] int64 flat positions of each sequence's last token
    lengths: torch.Tensor  # [N] int64 response lengths
    columns: dict[str, torch.Tensor]


def make_micro_batch(
    experience: Experience,
    sequences: NDArray[np.int64],
    columns: Mapping[str, NDArray],
    pack_length: int,
    device: torch.device,
) -> MicroBatch:
    """Select `sequences` and their part of every per-response-token array in `columns`, pack, move to `device`."""
    part = experience.select(sequences)
    ends = np.cumsum(part.lengths)
    starts = ends - part.response_lengths
    positions = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
    flat = np.concatenate(positions) if positions else np.empty(0, dtype=np.int64)
    picked = {k: ragged_take(v, experience.response_lengths, sequences) for k, v in columns.items()}
    picked["logprobs"] = part.logprobs
    return MicroBatch(
        rows=pack_rows(part.tokens, part.lengths, pack_length, masked=device.type == "cpu").to(device),
        response_positions=torch.from_numpy(flat).to(device),
        last_positions=torch.from_numpy(ends - 1).to(device),
        lengths=torch.from_numpy(part.response_lengths.astype(np.int64)).to(device),
        columns={k: torch.from_numpy(np.array(v)).to(device) for k, v in picked.items()},
    )


def forward_by_budget(
    experience: Experience,
    forward: Callable[[MicroBatch], torch.Tensor],
    *,
    lengths: NDArray[np.integer],
    engine: Engine,
    device: torch.device,
    name: str = "the model",
) -> NDArray[np.float32]:
    """Run `forward` over an experience in micro-batches of the engine's budget; results in the experience's order.

    Sequence i contributes `lengths[i]` consecutive values to the flat float32 result. Raises CastorError, with the
    model's `name`, when a value is not finite: nothing downstream may see a made-up number.
    """
    values = in_micro_batches(
        experience.lengths,
        engine.micro_batch_tokens,
        lambda sequences: forward(make_micro_batch(experience, sequences, {}, engine.pack_length, device)),
        counts=lengths,
    )
    _require_finite(values, lengths, experience, name)
    return values


@torch.no_grad()
def forward_shared(
    experience: Experience,
    forward: Callable[[MicroBatch], torch.Tensor],
    *,
    engine: Engine,
    device: torch.device,
    rank: int,
    world_size: int,
    name: str = "the model",
) -> NDArray[np.float32]:
    """[R] float32 values of the response tokens, on every rank, each of which works on its share. Collective.

    All ranks run `forward` equally often, as ZeRO-3 asks for, if need be on an empty micro-batch. Raises CastorError as
    `forward_by_budget` does.
    """
    mine = []
    for piece in deal(experience.lengths, world_size, engine.micro_batch_tokens, experience.groups)[rank]:
        sequences = np.asarray(piece, dtype=np.int64)
        values = forward(make_micro_batch(experience, sequences, {}, engine.pack_length, device))
        if piece:
            mine.append((sequences, values[None].float().cpu().numpy()))
    values = gather_tokens(mine, experience.response_lengths)[0]
    _require_finite(values, experience.response_lengths, experience, name)
    return values


def _require_finite(
    values: NDArray[np.float32], lengths: NDArray[np.integer], experience: Experience, name: str
) -> None:
    """`require_finite` of flat values, of which sequence i has `lengths[i]`."""
    owners = np.repeat(np.arange(len(experience)), lengths)
    require_finite(values, name, lambda i: experience.prompts[owners[i]])


def gather_tokens(
    mine: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]], lengths: NDArray[np.integer]
) -> NDArray[np.float32]:
    """All ranks' per-token results, as [K, R] in the order of the step's experience, on every rank. Collective.

    `mine` holds this rank's micro-batches: sequence indices and [K, tokens of these sequences]. Raises ValueError
    unless the ranks together cover every sequence exactly once.
    """
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, list(mine))
    pieces = [piece for share in shares for piece in share]
    order = np.concatenate([sequences for sequences, _ in pieces])
    if not np.array_equal(np.sort(order), np.arange(len(lengths))):
        raise ValueError("the ranks' shares do not cover every sequence exactly once")
    values = np.concatenate([part for _, part in pieces], axis=1)
    return np.stack([ragged_take(row, np.asarray(lengths)[order], np.argsort(order)) for row in values])


def sum_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Sums of scalars over all ranks. Collective: every rank gives the same names in the same order."""
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    if torch.cuda.is_available():
        total = total.cuda()
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def max_over_ranks(value: float) -> float:
    """Maximum of a scalar over all ranks. Collective."""
    total = torch.tensor(value, dtype=torch.float64)
    if torch.cuda.is_available():
        total = total.cuda()
    dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return float(total)
