"""What a rollout pool is given to do, and what comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.actor import ActorHandle

from actors.rollout import ChunkInfo, PromptRequest


@dataclass(frozen=True)
class Chunk:
    """A ref to finished experience, and the scalars the driver knows of it."""

    experience: Any
    info: ChunkInfo


@dataclass
class Job:
    """Requests that were dealt together."""

    unfinished: set[int]  # uids; the job is done when it is empty
    decode: bool
    step: int | None  # that it is sampled for
    oldest: int  # no token may be sampled by a version older than this
    overdue: int = 0  # responses that were dropped because one was


@dataclass(frozen=True)
class Dealt:
    """What one worker samples in one stream, and has not handed on yet."""

    worker: ActorHandle
    job: Job
    waiting: dict[int, PromptRequest]  # by uid


def request_seed(*parts: int | str) -> int:
    """A 31-bit seed that depends on nothing but `parts`: the run's seed, the step, the prompt, the sample."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def deal_requests(requests: Sequence[PromptRequest], workers: int) -> list[list[PromptRequest]]:
    """Equally many (±1) to each worker; those of one prompt to one worker, but for where shares are cut.

    Its engine then computes the prompt once, and the chunks that it hands on share beginnings.
    """
    samples: dict[str, list[PromptRequest]] = {}
    for request in requests:
        samples.setdefault(request.prompt.text, []).append(request)
    prompts = list(samples.values())
    order = [request for first in range(workers) for prompt in prompts[first::workers] for request in prompt]
    return [[order[i] for i in share] for share in np.array_split(np.arange(len(order)), workers)]
