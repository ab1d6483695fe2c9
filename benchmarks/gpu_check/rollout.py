"""Parts with a vLLM engine: weights sent into it, and turns with a learner on one GPU."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu_check import models
from benchmarks.gpu_check.setting import GIB, Figures, Setting
from castor.config.cluster import RayCluster
from castor.config.demo_model import DemoModel
from castor.config.rollout import Rollout
from castor.config.training import Resources
from castor.models.tiny import train_tokenizer
from castor.synthetic.prompts import enumerate_prompts

TIMEOUT_S = 120.0


def transfer(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """New weights into an engine's own process: through the object store, within the GPU, and over NCCL.

    The engine proves that it holds them, and samples other tokens. NCCL refuses two processes on one GPU, so these two
    tell it that they are on two nodes: it then goes through the network, whose rate here says nothing.
    """
    os.environ |= {"NCCL_SOCKET_IFNAME": "lo", "NCCL_HOSTID": "engine"}
    with _engine(setting, engine="async") as (name, engine):
        os.environ["NCCL_HOSTID"] = "learner"
        policy = models.policy(name, _dtype(setting), setting.device)
        for transport in ("host", "ipc") if setting.small else ("host", "ipc", "nccl"):
            before = _sampled(engine)
            changed = {key: tensor + 0.1 * torch.randn_like(tensor) for key, tensor in policy.lm.state_dict().items()}
            size = sum(tensor.nbytes for tensor in changed.values()) / GIB
            with _way(transport, engine) as send:
                figures: Figures = {"s at first": setting.once(partial(send, changed, 1))}
                _require(_sampled(engine) != before, "other weights sample the same tokens")
                seconds = setting.once(partial(send, changed, 2))
            copied = setting.seconds(partial(_copies, changed))
            yield f"{transport} {name}", figures | {"s": seconds, "GiB": size, "copies": seconds / copied}


def _copies(weights: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in weights.values()]


@contextmanager
def _way(transport: str, engine: Any) -> Iterator[Callable[[dict[str, torch.Tensor], int], None]]:
    """Sends weights of a version into the engine, and proves that they are there."""
    from engines.weights.base import WeightUpdate
    from engines.weights.collective import Sender as CollectiveSender

    sender = importlib.import_module(f"engines.weights.{transport}").Sender(keep=True)
    invitation = None
    if isinstance(sender, CollectiveSender):
        invitation = sender.invite("127.0.0.1", 1, TIMEOUT_S)
        sender.accept(invitation)

    def send(weights: dict[str, torch.Tensor], version: int) -> None:
        if invitation is None:
            update = sender.send(weights.items(), version)
            update.check((version, engine.load_weights(update)))
            return
        announced = WeightUpdate(version, "", transport, [asdict(invitation)])
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(engine.load_weights, announced)
            update = sender.send(weights.items(), version)
            update.check((version, loading.result(TIMEOUT_S)))

    yield send
    if isinstance(sender, CollectiveSender):
        sender.close()


def taking_turns(setting: Setting) -> Iterator[tuple[str, Figures]]:
    """The engine sleeps while a learner steps; with the learner's weights it then samples again."""
    from benchmarks.gpu_check.training import engine_of, one_step
    from castor.models.policy import LM
    from engines.weights.host import Sender

    with _engine(setting, sleeps=True) as (name, engine):
        before, free = _sampled(engine), _free(setting)
        figures: Figures = {"s to sleep": setting.once(lambda: engine.sleep(keep_weights=False))}
        if not setting.small:
            figures["GiB freed"] = (_free(setting) - free) / GIB
        learner, batch = engine_of("policy", name, setting)
        figures["s of a step"] = setting.once(lambda: one_step(learner, batch))
        weights = ((key.removeprefix(LM), tensor) for key, tensor in learner.whole_tensors(lambda key: True))
        update = Sender(keep=True).send(weights, 1)
        assert update is not None
        figures["s to leave"] = setting.once(learner.leave_gpu)
        figures["s to wake"] = setting.once(lambda: engine.wake("weights"))
        digest = engine.load_weights(update)
        engine.wake("kv_cache")
        _require(digest == update.digest, f"the engine holds {digest}, and {update.digest} was sent")
        _require(len(_sampled(engine)) == len(before), "the engine does not sample as before")
        yield name, figures


@contextmanager
def _engine(
    setting: Setting, *, engine: Literal["inproc", "async"] = "inproc", sleeps: bool = False
) -> Iterator[tuple[str, Any]]:
    """A vLLM engine around a random model, beside a Ray of its own."""
    from actors.cluster import cluster
    from engines.vllm_engine import make_engine

    name = models.TINY if setting.small else "1B"
    rollout = Rollout(
        engine=engine, max_new_tokens=16, max_num_seqs=8, gpu_memory_utilization=0.4, kv_cache_mib=64,
        dtype="float32" if setting.small else "bfloat16", resources=Resources(gpus=0 if setting.small else 1),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place, cluster(RayCluster()):
        folder = Path(place)
        text = (prompt.text for prompt in enumerate_prompts("train"))
        train_tokenizer(DemoModel(vocab_size=models.CONFIGS[name].vocab_size), text).save_pretrained(folder)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(models.CONFIGS[name], dtype=_dtype(setting)).save_pretrained(folder)
        yield name, make_engine(str(folder), rollout, 96, False, sleeps)


def _sampled(engine: Any) -> list[list[int]]:
    """The tokens of a few responses, always the same for the same weights."""
    from engines.vllm_engine import Request

    responses = engine.generate([Request(number, [5, 6, 7, 8], number) for number in range(8)])
    return [response.tokens for response in sorted(responses, key=lambda response: response.uid)]


def _dtype(setting: Setting) -> torch.dtype:
    return torch.float32 if setting.small else torch.bfloat16


def _free(setting: Setting) -> int:
    return 0 if setting.small else torch.cuda.mem_get_info(setting.device)[0]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(what)
