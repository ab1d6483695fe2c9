"""A step of PPO-Lag through the real actors, against the published structure in one process.

The same models, prompts and lengths, in turns on the same machine. The published step has all cores for every one of
its parts (torch's default threads); Castor's actors have the threads of configs/demo.yaml. Those of one loop of ours
live at a time: even idle ones of a second loop cost it a twelfth.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actors.cluster import cluster
from benchmarks.bench.countdown import Shape, long_tailed, make_models, make_prompts, response_length
from benchmarks.bench.loop import Loop, acting
from benchmarks.bench.measurement import Ratio, Section
from benchmarks.bench.published_step import Options, PublishedTrainer
from castor.config.cluster import RayCluster
from castor.config.learner import Learner
from castor.config.multipliers import Multipliers
from castor.config.rlhf import RLHF
from castor.config.rollout import Rollout
from castor.config.signal import Signal
from castor.config.training import Engine, Optimizer
from castor.data.tokens.prompt_stream import Prompt, PromptStream

PROMPT_TOKENS, MEAN_LENGTH = 55, 19
LOOPS: dict[str, dict[str, Any]] = {  # what is said of each of ours, and what it does otherwise than the published step
    "": {},
    ", critics' last layer alone trained": {"critic_layers": 1},
    ", in bfloat16": {"dtype": "bfloat16"},
}
PARTS = ("rollout_s", "learn_s", "transfer_s")
SKIPPED = 2  # steps at the beginning of each block, while caches and clocks settle


def ppo_lag(
    responses: int,
    longest: int,
    steps: int,
    critic_layers: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> RLHF:
    """PPO-Lag with the options of the published script, and the actors of configs/demo.yaml.

    Of the critics `critic_layers` are trained; None: all, as in the published script. What is trained, and what scores
    beside it, computes in `dtype`.
    """
    options = Options()

    def engine(lr: float, layers: int | None = None) -> Engine:
        optimizer = Optimizer(lr=lr, lr_scheduler_type="constant", lr_warmup_ratio=0.0)
        return Engine(zero_stage=2, dtype=dtype, optimizer=optimizer, trained_layers=layers)

    critic = engine(options.critic_lr, critic_layers)
    return RLHF(
        steps=steps,
        prompts_per_step=responses,
        signals={
            "reward": Signal(role="objective", model="unused", critic=critic),
            "cost": Signal(role="constraint", model="unused", threshold=options.threshold, critic=critic),
        },
        multipliers=Multipliers(
            rule="sgd_log", lambda_init=options.lambda_init, lambda_lr=options.lambda_lr, lambda_max=options.lambda_max
        ),
        advantage={"kl_coeff": options.kl_coeff},
        rollout=Rollout(
            max_prompt_tokens=PROMPT_TOKENS, max_new_tokens=longest, chunk_size=16, max_num_seqs=max(responses, 128)
        ),
        learner=Learner(engine=engine(options.actor_lr)),
    )


@dataclass
class Compared:
    """What was found of one of our loops on one workload; the published step is theirs."""

    ratios: list[float] = field(default_factory=list)  # of each block: all its steps together
    shares: list[float] = field(default_factory=list)
    ours: list[dict[str, float]] = field(default_factory=list)  # of each step that counts
    theirs: list[dict[str, float]] = field(default_factory=list)

    def figures(self, what: str) -> dict[str, float]:
        """Medians of the steps: whole and by part."""
        made = {}
        for name, rows in (("Castor", self.ours), ("published", self.theirs)):
            for part in rows[0]:
                median = statistics.median(row[part] for row in rows)
                made[f"{what}: {name}, {part.removesuffix('_s')} (s)"] = median
        return made


def compare(loop: Loop, published: PublishedTrainer, prompts: Sequence[Prompt], blocks: int, counted: int) -> Compared:
    """Both on the same batches of prompts, in blocks by turns. Of ours some steps go before each block.

    Raises RuntimeError when a response does not have the length that its prompt says.
    """
    found, size = Compared(), loop.config.prompts_per_step
    streams = [PromptStream(prompts, size, 0) for _ in range(2)]
    for _ in range(blocks):
        block = loop.block(streams[0], SKIPPED + counted)
        for _ in range(SKIPPED):
            streams[1].next_batch()
        theirs, said = _published_block(published, streams[1], counted)
        ours = block.seconds(SKIPPED)
        if said != [int(row["response_tokens"]) for row in block.rows[SKIPPED:]]:
            raise RuntimeError(f"responses of {said} tokens a step there, of others here: they are not comparable")
        found.ratios.append(sum(row["step_s"] for row in theirs) / sum(ours))
        found.shares.append(block.ray_share)
        found.theirs += theirs
        found.ours += [
            {"step_s": step, **{lap: row[lap] for lap in PARTS}}
            for row, step in zip(block.rows[SKIPPED:], ours, strict=True)
        ]
    return found


def _published_block(
    published: PublishedTrainer, stream: PromptStream, count: int
) -> tuple[list[dict[str, float]], list[int]]:
    """The seconds of each step, whole and by part, and its response tokens."""
    rows, tokens = [], []
    for _ in range(count):
        prompts = [prompt for _, prompt in stream.next_batch()]
        start = time.perf_counter()
        parts, lengths = published.step(prompts)
        rows.append({"step_s": time.perf_counter() - start, **parts})
        if lengths.tolist() != [response_length(prompt) for prompt in prompts]:
            raise RuntimeError(f"responses of {lengths.tolist()} tokens to prompts that say otherwise")
        tokens.append(int(lengths.sum()))
    return rows, tokens


def measure(smoke: bool) -> Section:
    """The ratio with long-tailed and with equal lengths, the parts of both, and Ray's share of a step."""
    shape, responses = Shape(), 64
    blocks, most = 2, 2
    if smoke:
        shape, responses = Shape(hidden=64, layers=2, heads=2, intermediate=96, longest=30), 8
        most = 1
    count = responses * (SKIPPED + most) * blocks
    workloads = {
        "long-tailed lengths": (long_tailed(count, shape, MEAN_LENGTH, seed=0), 3.0),
        "equal lengths": (np.full(count, MEAN_LENGTH), 1.6),
    }
    ratios, shares, figures = list[Ratio](), list[float](), dict[str, float]()
    with tempfile.TemporaryDirectory() as place, cluster(RayCluster(num_cpus=8)):
        models = make_models(Path(place), shape)
        published = PublishedTrainer(models, Options(), shape.longest)
        judges = {"reward": models.reward, "cost": models.cost}
        for number, (otherwise, options) in enumerate(LOOPS.items()):
            state = Path(place) / str(number)
            state.mkdir()
            config = ppo_lag(responses, shape.longest, 10**6, **options)
            with acting(config, models.policy, judges, state) as loop:
                for workload, (lengths, wanted) in workloads.items():
                    prompts = make_prompts(lengths, PROMPT_TOKENS, 0)
                    compared = compare(loop, published, prompts, blocks, 1 if otherwise else most)
                    figures |= compared.figures(workload + otherwise)
                    shares += compared.shares
                    ratios.append(
                        Ratio(
                            f"published step / Castor's step, {workload}{otherwise}",
                            tuple(compared.ratios),
                            at_least=wanted,
                            bounded_by="generate and padded passes there; here the same arithmetic without padding, "
                            "and actors that share the cores",
                        )
                    )
    share = Ratio(
        "CPU time of driver, raylet and object store / time of the steps",
        tuple(shares),
        at_most=0.05,
        bounded_by="Ray's calls: a few dozen a step, however long it is",
    )
    return Section("step", (*ratios, share), figures)
