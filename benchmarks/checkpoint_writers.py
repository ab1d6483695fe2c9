"""Ways to write the state of a DeepSpeed engine while it trains on: what each costs the training, in one run.

`python -m benchmarks.checkpoint_writers` trains a random Llama of 64 million parameters (768 MB of state in float32) on
one rank, and saves it once with each writer: Castor's copy, which a thread writes and hashes; torch's asynchronous
distributed checkpoint in a thread and in a process; DeepSpeed's `save_checkpoint`, as it is, with its fast and with its
decoupled writer. A step's time is measured before each, in the same process. `stall` is how long the next step has to
wait, `whole` how long until everything is on disk, `extra` by how much the steps until then were longer than those
before; `lost steps` is stall and extra, in steps.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.memory import MODEL, engine_config

BEFORE = 6  # steps whose median is a step's time
TOKENS = 256
TIMEOUT_S = 600.0
Save = Callable[[Any, Path], "Future[Any] | None"]  # begins to save an engine; None: it is saved


@dataclass(frozen=True)
class Measured:
    """Seconds of one writer, and bytes that it wrote."""

    step: float
    stall: float
    extra: float
    whole: float
    size: int


def castor(engine: Any, folder: Path) -> Future[Any]:
    """Copy, write in a thread, hash."""
    from castor.io.checkpoint import mark_files

    state = engine.snapshot()
    folder.mkdir()
    with _thread() as thread:
        return thread.submit(lambda: mark_files(folder, state.write(folder)))


def torch_dcp(engine: Any, folder: Path, kind: str = "thread") -> Future[Any]:
    """`torch.distributed.checkpoint.async_save`."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

    state = {"model": engine.engine.module.state_dict(), "optimizer": engine.engine.optimizer.state_dict()}
    saved = async_save(state, checkpoint_id=folder, async_checkpointer_type=AsyncCheckpointerType(kind))
    return cast(Any, saved)


def torch_dcp_process(engine: Any, folder: Path) -> Future[Any]:
    """The same, where a process of its own writes."""
    return torch_dcp(engine, folder, "process")


def deepspeed(engine: Any, folder: Path) -> None:
    """DeepSpeed's own, with the writer of the engine's config."""
    engine.engine.save_checkpoint(str(folder), save_latest=False)


WRITERS: dict[str, tuple[Save, dict[str, Any] | None]] = {
    "castor": (castor, None),
    "torch, a thread": (torch_dcp, None),
    "torch, a process": (torch_dcp_process, None),
    "deepspeed": (deepspeed, None),
    "deepspeed, fast": (deepspeed, {"type": "python", "decoupled": False}),
    "deepspeed, decoupled": (deepspeed, {"type": "python", "decoupled": True}),
}


def measure(save: Save, writer: dict[str, Any] | None, folder: Path) -> Measured:
    """Train, save once, and train until it is saved."""
    engine = _engine(writer)
    before = [_step(engine) for _ in range(1 + BEFORE)][1:]  # the first one makes AdamW's moments
    begin = time.perf_counter()
    saving = save(engine, folder)
    stall, during = time.perf_counter() - begin, list[float]()
    while saving is not None and not saving.done():
        during.append(_step(engine))
    if saving is not None:
        saving.result(TIMEOUT_S)
    whole = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    usual = median(before)
    return Measured(usual, stall, max(sum(during) - usual * len(during), 0.0), whole, size)


def _engine(writer: dict[str, Any] | None) -> Any:
    from transformers import LlamaForCausalLM

    from castor.models.policy import PolicyModel
    from castor.models.tiny import llama_config
    from engines import deepspeed_engine

    config = engine_config(1, "float32").model_copy(update={"micro_batch_tokens": TOKENS, "pack_length": TOKENS})
    made = deepspeed_engine._deepspeed_config
    if writer is not None:
        deepspeed_engine._deepspeed_config = lambda *args: made(*args) | {"checkpoint": {"writer": writer}}
    try:
        llama: Any = LlamaForCausalLM(llama_config(MODEL, MODEL.vocab_size))
        return deepspeed_engine.TrainEngine(PolicyModel(llama), config, 1000)
    finally:
        deepspeed_engine._deepspeed_config = made


def _step(engine: Any) -> float:
    import numpy as np
    import torch

    from castor.packing import pack_rows

    rows = pack_rows(np.arange(TOKENS) % MODEL.vocab_size, np.array([TOKENS]), TOKENS)
    begin = time.perf_counter()
    engine.accumulate(-engine.forward(rows, torch.arange(1, TOKENS)).sum())
    engine.step()
    return time.perf_counter() - begin


@contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    thread = ThreadPoolExecutor(1)
    try:
        yield thread
    finally:
        thread.shutdown(wait=False)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    import torch.distributed as dist

    from engines.deepspeed_engine import init_process_group

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        store = cast(Any, dist).TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port + 1),
            "CROSS_SIZE": "1",
            "CROSS_RANK": "0",
        }
        init_process_group(0, 1, 0, store, TIMEOUT_S)
        print(f"{'':<22}{'MB':>7}{'step s':>8}{'stall s':>9}{'whole s':>9}{'extra s':>9}{'lost steps':>12}")
        for number, (what, (save, writer)) in enumerate(WRITERS.items()):
            try:
                found = measure(save, writer, Path(name) / str(number))
            except Exception as error:  # what DeepSpeed cannot build here is said, and the others are measured
                print(f"{what:<22}  {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)
                continue
            lost = (found.stall + found.extra) / found.step
            print(
                f"{what:<22}{found.size / 1e6:>7.0f}{found.step:>8.2f}{found.stall:>9.2f}{found.whole:>9.2f}"
                f"{found.extra:>9.2f}{lost:>12.1f}",
                flush=True,
            )
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
