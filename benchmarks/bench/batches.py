"""The batch that learner, critic and judge are measured on, and the plain way to run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.bench.countdown import Shape, long_tailed, make_prompts
from castor.config.training import Engine, Optimizer
from castor.experience import Experience
from engines.deepspeed_engine import init_process_group

PROMPT_TOKENS, MEAN_LENGTH, LR = 55, 19, 1e-5
MAX_GRAD_NORM = 1.0


def engine(micro_batch_tokens: int = 4096) -> Engine:
    """That of configs/demo.yaml."""
    optimizer = Optimizer(lr=LR, lr_scheduler_type="constant", lr_warmup_ratio=0.0, max_grad_norm=MAX_GRAD_NORM)
    return Engine(zero_stage=2, micro_batch_tokens=micro_batch_tokens, pack_length=128, optimizer=optimizer)


def experience(shape: Shape, responses: int) -> Experience:
    """Responses of long-tailed lengths, with made-up tokens and log-probabilities near those of equal choices."""
    random = np.random.default_rng(0)
    lengths = long_tailed(responses, shape, MEAN_LENGTH, seed=0)
    prompts = make_prompts(lengths, PROMPT_TOKENS, 0)
    total = int(lengths.sum())
    answers = np.split(random.integers(5, shape.vocabulary, total), np.cumsum(lengths)[:-1])
    return Experience(
        uids=np.arange(responses),
        prompts=tuple(prompt.text for prompt in prompts),
        tokens=np.concatenate([part for pair in zip((p.ids for p in prompts), answers, strict=True) for part in pair])
        .astype(np.int32),
        prompt_lengths=np.full(responses, PROMPT_TOKENS, np.int32),
        response_lengths=lengths.astype(np.int32),
        logprobs=random.normal(-2.2, 0.3, total).astype(np.float32),
        versions=np.zeros(total, np.int32),
        truncated=np.zeros(responses, bool),
    )  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process, as every rank of Castor has one."""
    init_process_group(0, 1, 0, cast(Any, dist).HashStore(), 600.0)
    try:
        yield
    finally:
        dist.destroy_process_group()


def bare_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """What the engine trains with, without an engine."""
    return torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def bare_update(model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    """Clip, step, and forget the gradients."""
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()
