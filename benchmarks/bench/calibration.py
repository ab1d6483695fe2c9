"""Figures of this machine's CPU for `castor plan`: `python -m benchmarks.bench.calibration > cpu.json`.

A Llama of about a million parameters, made on the spot, goes through Castor's own parts on one thread: forward and
backward passes and a step of the optimiser in a DeepSpeed engine, and vLLM with different numbers of responses under
way. What a part takes beside its FLOPs follows from two sizes of it. Each runs in a process of its own, after one
untimed call; the fastest of some repetitions counts.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.bench.measurement import seconds
from castor.config.demo_model import DemoModel
from castor.config.rollout import Rollout
from castor.config.training import Engine
from castor.dry_run.shapes import Shape, shape_of
from castor.planner.costs import UPDATE_BYTES, Tokens, forward_flops
from castor.planner.device import Device
from engines.vllm_arguments import VLLM_ENV

MODEL = DemoModel(hidden_size=128, layers=4, intermediate_size=344, max_position_embeddings=160)
LENGTH, PROMPT = 96, 32  # tokens of a sequence, and of those its prompt
SEQUENCES = (4, 40)  # of a small and of a large micro-batch
UNDER_WAY = (4, 64)  # responses at a time
NEW_TOKENS = 32
REPETITIONS = 5


def make_model(folder: Path, config: DemoModel = MODEL, seed: int = 0) -> Path:
    """A random model with a tokenizer of the synthetic corpus's words, in `folder`."""
    from castor.config.data import SyntheticOptions
    from castor.models.tiny import make_demo_model
    from castor.synthetic.corpus import demonstrations

    rows = demonstrations(SyntheticOptions(), "train", 2000)
    make_demo_model(config, (text for row in rows for text in (row["prompt"], row["response"])), seed, folder)
    return folder


def calibrate(model: Path, repetitions: int = REPETITIONS) -> Device:
    """The device that one thread of this machine is, measured with a model in a folder."""
    training = _apart(_train, str(model), repetitions)
    decoding = _apart(_decode, str(model), repetitions)
    return Device(
        name=f"CPU ({platform.processor() or platform.machine()}), one thread",
        flops=training["forward"],
        bandwidth=training["update"],
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        link=1e9,  # no figure of a step on one rank depends on these three
        network=1e9,
        host_link=1e9,
        training=training["backward"] / training["forward"],
        forward=1.0,
        prefill=decoding["prefill"] / training["forward"],
        reading=1.0,
        moving=1.0,
        transfer_s=0.01,  # within a node, from one process to another
        pageable=1e9,
        broadcast=1e9,
        iteration_s=decoding["iteration_s"],
        sequence_s=decoding["sequence_s"],
        pass_s=training["pass_s"],
        cores=_cores(),
    )


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work` in a process of its own, with vLLM's environment."""
    before = dict(os.environ)
    os.environ.update(VLLM_ENV | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            return pool.submit(work, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _quiet() -> None:
    """What libraries print goes to stderr: stdout is the calibration's."""
    os.dup2(2, 1)


def _fastest(work: Callable[[], object], repetitions: int) -> float:
    work()
    return min(seconds(work) for _ in range(repetitions))


def _train(model: str, repetitions: int) -> dict[str, float]:
    """FLOP/s of forward passes and of those with gradients, seconds of a pass beside them, bytes/s of the optimiser."""
    import torch

    torch.set_num_threads(1)
    from castor.models.policy import PolicyModel
    from engines.deepspeed_engine import TrainEngine, init_process_group

    init_process_group(0, 1, 0, cast(Any, torch.distributed).HashStore(), 60)
    options = Engine(zero_stage=2, micro_batch_tokens=SEQUENCES[1] * LENGTH, pack_length=LENGTH)
    policy = PolicyModel.load(model, torch.float32, engine=options)
    shape = shape_of(policy.lm.config)
    engine = TrainEngine(policy, options, total_steps=1000)
    forward, trained = [], []
    for count in SEQUENCES:
        rows, positions = _rows(count, shape)
        forward.append(_fastest(lambda: engine.infer(rows, positions, 1.0), repetitions))  # noqa: B023

        def step() -> None:
            engine.accumulate(engine.forward(rows, positions, 1.0).sum())  # noqa: B023

        trained.append(_fastest(step, repetitions))
    flops = [sum(forward_flops(shape, _tokens(count), score=False)) for count in SEQUENCES]
    rate, pass_s = _line(flops, forward)
    backward, _ = _line([3 * each for each in flops], trained)
    updates = []
    for _ in range(1 + repetitions):  # each needs gradients of its own
        step()
        updates.append(seconds(engine.step))
    return {
        "forward": rate,
        "backward": backward,
        "pass_s": pass_s,
        "update": shape.parameters * UPDATE_BYTES / min(updates[1:]),
    }


def _tokens(count: int) -> Tokens:
    return Tokens(count * LENGTH, count * (LENGTH - PROMPT), LENGTH)


def _rows(count: int, shape: Shape) -> tuple[Any, Any]:
    """Random sequences, packed, and the positions of their responses."""
    import torch

    from castor.packing import pack_rows

    tokens = np.random.default_rng(0).integers(0, shape.vocabulary, count * LENGTH).astype(np.int32)
    positions = np.concatenate([np.arange(i * LENGTH + PROMPT, (i + 1) * LENGTH) for i in range(count)])
    rows = pack_rows(tokens, np.full(count, LENGTH, dtype=np.int64), LENGTH).to(torch.device("cpu"))
    return rows, torch.from_numpy(positions)


def _line(work: list[float], times: list[float]) -> tuple[float, float]:
    """Work a second, and the seconds that do not depend on it, from two sizes."""
    rate = (work[1] - work[0]) / max(times[1] - times[0], 1e-9)
    return rate, max(times[1] - work[1] / rate, 0.0)


def _decode(model: str, repetitions: int) -> dict[str, float]:
    """FLOP/s of prompts; seconds of a token of all responses under way, and of each response in it."""
    import torch

    torch.set_num_threads(1)
    from castor.models.policy import PolicyModel
    from engines.vllm_engine import Request, make_engine

    shape = shape_of(PolicyModel.load(model, torch.float32).lm.config)
    times: dict[tuple[int, int], float] = {}
    rollout = Rollout(max_prompt_tokens=PROMPT, max_new_tokens=NEW_TOKENS, max_num_seqs=UNDER_WAY[1])
    engine = make_engine(model, rollout, PROMPT + NEW_TOKENS, False)
    random, longest = np.random.default_rng(0), {}
    for count in UNDER_WAY:
        prompts = random.integers(8, shape.vocabulary, (count, PROMPT)).tolist()
        requests = [Request(i, prompt, i) for i, prompt in enumerate(prompts)]
        longest[count] = max(len(each.tokens) for each in engine.generate(requests))
        times[count, NEW_TOKENS] = _fastest(lambda: list(engine.generate(requests)), repetitions)  # noqa: B023
    per_token = {count: times[count, NEW_TOKENS] / longest[count] for count in UNDER_WAY}
    few, many = UNDER_WAY
    slope = (per_token[many] - per_token[few]) / (many - few)
    # a prompt of 32 tokens costs the model as much as 32 tokens of a response do, which are slower for what is around
    compute = slope / 2
    return {
        "prefill": 2 * shape.backbone / compute,
        "iteration_s": max(per_token[few] - few * slope, 0.0),
        "sequence_s": slope - compute,
    }


def _cores() -> float:
    """How many threads' worth of work this machine does at once."""
    count = os.cpu_count() or 1
    context = get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        list(pool.map(_products, [1] * count))  # all are up
        alone = min(pool.submit(_products, 20).result() for _ in range(3))
        together = min(max(pool.map(_products, [20] * count)) for _ in range(3))
    return max(1.0, min(count, count * alone / together))


def _products(count: int) -> float:
    """Seconds of so many matrix products on one thread."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.rand(512, 512)
    return seconds(lambda: [matrix @ matrix for _ in range(count)])


def main() -> None:
    """Print the calibration."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asdict(calibrate(make_model(Path(folder)))), indent=2))


if __name__ == "__main__":
    main()
