"""Two ranks of a learner that share the one GPU: ZeRO 1 to 3 over NCCL, on a model that is loaded in shards at stage 3.

NCCL refuses two ranks on one GPU, so each tells it that it is on a node of its own: what they send goes through the
network, and the rates say nothing about one of NVLink.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.gpu_check import models
from benchmarks.gpu_check.setting import GIB, Figures, Setting
from benchmarks.gpu_check.training import engine_config, loss_of, one_step, random_batch
from castor.models.policy import PolicyModel

RANKS, STAGES, TIMEOUT_S = 2, (1, 2, 3), 120.0
FAR = 0.05  # gradients in bfloat16, from those in float32


def two_ranks(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """A step of both ranks has the gradient that one model has on the batches of both."""
    name = models.TINY if setting.small else "0.1B"
    with tempfile.TemporaryDirectory() as place:
        dtype = torch.float32 if setting.small else torch.bfloat16
        models.policy(name, dtype, torch.device("cpu")).lm.save_pretrained(place)
        spawn(_rank, (setting, name, place), nprocs=RANKS)
        cases: list[tuple[str, Figures]] = json.loads((Path(place) / "found.json").read_text(encoding="utf-8"))
    yield from cases


def _rank(rank: int, setting: Setting, name: str, place: str) -> None:
    from engines.deepspeed_engine import init_process_group

    os.environ |= {"NCCL_HOSTID": f"rank {rank}", "NCCL_SOCKET_IFNAME": "lo"}
    store = cast(Any, dist).FileStore(f"{place}/store", RANKS)
    init_process_group(rank, RANKS, setting.device.index or 0, store, TIMEOUT_S)
    wanted = _norm(setting, name, place)
    batch = random_batch(name, setting, seed=rank)
    found = [(f"{name} ZeRO-{stage}", _steps(setting, place, stage, batch, wanted)) for stage in STAGES]
    if rank == 0:
        Path(place, "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def _steps(setting: Setting, place: str, stage: int, batch: models.Batch, wanted: float) -> Figures:
    """Of one engine; the gradient of its first step has the `wanted` norm."""
    from engines.deepspeed_engine import TrainEngine, loading

    config = engine_config(setting, stage)
    with loading(config):
        policy = PolicyModel.load(place, torch.float32 if setting.small else torch.bfloat16, engine=config)
    engine = TrainEngine(policy, config, 100)
    engine.accumulate(loss_of("policy", engine.forward(batch.rows, batch.positions)))
    norm = engine.step()
    if not abs(norm / wanted - 1) <= FAR:
        raise RuntimeError(f"ZeRO-{stage} on two ranks has a gradient of norm {norm:g}, and one model {wanted:g}")
    figures: Figures = {"norm": norm / wanted, "s of a step": setting.once(partial(one_step, engine, batch))}
    if not setting.small:
        figures["GiB held"] = torch.cuda.memory_allocated(setting.device) / GIB
    engine.engine.destroy()
    return figures


def _norm(setting: Setting, name: str, place: str) -> float:
    """Of the gradient of one float32 model on the batches of all ranks."""
    model = PolicyModel.load(place, torch.float32).to(setting.device)
    for rank in range(RANKS):
        batch = random_batch(name, setting, seed=rank)
        loss_of("policy", model(batch.rows, batch.positions)).backward()
    return float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
