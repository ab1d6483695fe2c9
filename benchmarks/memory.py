"""What the ranks of a DeepSpeed engine hold beside what `--dry-run` estimates: prints both for every ZeRO stage.

`python -m benchmarks.memory` trains a random Llama of 64 million parameters for three steps of two micro-batches on two
gloo ranks. `states`, `update` and `rest` are the storages of all tensors of a process, without those from before the
model: between the two backward passes of a step, when AdamW begins, and after the update. `resident` is the growth of
the process's peak resident memory since before the model, beside the estimated peak: buffers that come and go count.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from castor.config.demo_model import DemoModel
from castor.config.training import Engine, Offload, Resources
from castor.dry_run.memory import Memory, trained
from castor.dry_run.shapes import measure

IMPORTED = ["transformers.models.llama.modeling_llama", "engines.deepspeed_engine", "castor.models.tiny"]
TIMEOUT_S = 600
MODEL = DemoModel(vocab_size=16384, hidden_size=768, layers=6, heads=12, intermediate_size=2048)
STEPS = 3  # in the first, AdamW makes its moments
TOKENS = 64  # of a micro-batch: few, so that activations are small beside the states
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank."""

    states: int
    update: int
    rest: int
    resident: int


def engine_config(stage: int, dtype: str, offload: Offload | None = None) -> Engine:
    """An engine of that stage and type that takes `TOKENS` tokens at a time."""
    return Engine(
        zero_stage=stage, dtype=dtype, micro_batch_tokens=TOKENS, pack_length=TOKENS, offload=offload or Offload()
    )


def estimate(model: DemoModel, config: Engine, ranks: int) -> Memory:
    """What the dry run says of one rank."""
    shape = measure(model)
    assert shape is not None
    return trained(shape, config, ranks, Resources(), score=False)


def measure_ranks(model: DemoModel, configs: Sequence[Engine], ranks: int) -> list[list[Measured]]:
    """Train under each config in turn, every time on `ranks` fresh processes; [config][rank].

    Raises whatever a rank raises, and TimeoutError.
    """
    context = multiprocessing.get_context("forkserver")  # an engine leaves things behind: none sees another's
    context.set_forkserver_preload(IMPORTED)
    on_cpu = patch.dict(os.environ, DS_ACCELERATOR="cpu", TORCHDYNAMO_DISABLE="1")  # both are read by an import
    with on_cpu, tempfile.TemporaryDirectory() as folder, context.Pool(ranks, maxtasksperchild=1) as pool:
        work = [
            (rank, ranks, str(Path(folder) / str(number)), model, config)
            for number, config in enumerate(configs)
            for rank in range(ranks)
        ]
        found = pool.starmap_async(_rank, work, chunksize=1).get(TIMEOUT_S * len(configs))
    return [found[first : first + ranks] for first in range(0, len(found), ranks)]


def _rank(rank: int, ranks: int, store: str, model: DemoModel, config: Engine) -> Measured:
    import torch
    import torch.distributed as dist

    from engines.deepspeed_engine import init_process_group

    gc.freeze()  # what was imported is no engine's, and need not be looked through
    torch.set_num_threads(1)
    init_process_group(rank, ranks, 0, cast(Any, dist).FileStore(store, ranks), TIMEOUT_S)
    try:
        return _measured(model, config)
    finally:
        dist.destroy_process_group()


def _measured(model: DemoModel, config: Engine) -> Measured:
    import numpy as np
    import torch
    from transformers import LlamaForCausalLM

    from castor.models.device import resolve_dtype
    from castor.models.policy import PolicyModel
    from castor.models.tiny import llama_config
    from castor.packing import pack_rows
    from engines.deepspeed_engine import TrainEngine

    held, before, states, begun = _in_tensors(), _peak_resident(), 0, list[int]()
    rows = pack_rows(np.arange(TOKENS) % model.vocab_size, np.array([TOKENS]), TOKENS)
    llama: Any = LlamaForCausalLM(llama_config(model, model.vocab_size))
    llama = llama.to(resolve_dtype(config.dtype))
    engine = TrainEngine(PolicyModel(llama), config, STEPS)
    engine.engine.basic_optimizer.register_step_pre_hook(lambda *_: begun.append(_in_tensors() - held))
    for _ in range(STEPS):
        for _ in range(2):
            states = _in_tensors() - held
            engine.accumulate(-engine.forward(rows, torch.arange(1, TOKENS)).sum())
        begun.clear()
        engine.step()
    return Measured(states, max(begun), _in_tensors() - held, _peak_resident() - before)


def _in_tensors() -> int:
    """Bytes of the storages of all tensors of this process that are reachable, gradients with them."""
    import torch

    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [each.grad for each in tensors if each.is_leaf and each.grad is not None]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    ranks = parser.parse_args().ranks
    print(f"MiB a rank of {ranks}, estimated and measured")
    print(f"{'':<15}{'states':>16}{'rest':>16}{'resident':>16}")
    for stage in range(4):
        for dtype in ("float32", "bfloat16"):
            config = engine_config(stage, dtype)
            memory = estimate(MODEL, config, ranks)
            found = max(measure_ranks(MODEL, [config], ranks)[0], key=lambda each: each.resident)
            left = memory.weights + memory.optimizer + (memory.gradients if stage == 3 else 0)
            states = memory.weights + memory.gradients + memory.optimizer
            pairs = [(states, found.states), (left, found.rest), (memory.model, found.resident)]
            told = "".join(f"{said / MIB:>8.0f}{is_ / MIB:>8.0f}" for said, is_ in pairs)
            print(f"ZeRO-{stage} {dtype:<9}{told}", flush=True)


if __name__ == "__main__":
    main()
