"""Rollouts: pools of one worker and of two beside bare vLLM that samples as many tokens for the same prompts.

Bare vLLM is asked twice. *Same parameters*: seeds and log-probabilities, which training needs, in an engine of Castor's
arguments. *Plain*: neither, in an engine of vLLM's own defaults, with each response as long as that of the same prompt
was with Castor. All cores belong to whoever's turn it is; two engines have half of the cores each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

from actors.cluster import cluster
from actors.group import START_TIMEOUT_S, actor_options, get
from actors.rollout import PromptRequest, RolloutWorker
from actors.rollout_pool import RolloutPool
from benchmarks.bench import bare_vllm
from benchmarks.bench.measurement import Ratio, Section, in_turns, paired
from benchmarks.bench.random_models import cores, llama, make_llama, random_prompts
from castor.config.cluster import RayCluster
from castor.config.demo_model import DemoModel
from castor.config.rollout import CPU_KV_CACHE_MIB, Rollout
from castor.config.training import Resources
from castor.data.tokens.prompt_stream import Prompt
from castor.model_reference import ModelReference
from engines.vllm_arguments import VLLM_ENV

TURN_S = 600.0
SAME, PLAIN = 0.95, 0.9  # of bare vLLM's tokens per second, at least, for a pool
PACKS = "what packs the responses and hands them on through Ray, and vLLM's own loop"
SEEDS = "vLLM's seeded sampling, request by request, and log-probabilities"
Rates = dict[str, tuple[float, ...]]  # tokens per second of each repetition, by who samples


@dataclass(frozen=True)
class Load:
    """Prompts, and how many samples of each."""

    name: str
    model: DemoModel  # where each token is as likely as another, one in `vocab_size` ends a response
    prompts: int
    prompt_tokens: int
    samples: int
    max_new_tokens: int

    def rollout(self, workers: int, threads: int) -> Rollout:
        """The config of a pool."""
        return Rollout(
            workers=workers, max_prompt_tokens=self.prompt_tokens, max_new_tokens=self.max_new_tokens, kv_cache_mib=512,
            resources=Resources(threads=threads),
        )  # fmt: skip

    def requests(self, prompts: list[Prompt]) -> list[PromptRequest]:
        """Every prompt `samples` times, one after the other."""
        return [PromptRequest(uid, prompts[uid // self.samples], uid) for uid in range(len(prompts) * self.samples)]


def loads(smoke: bool) -> list[Load]:
    """What is sampled."""
    if smoke:
        return [Load("even", llama(64, 2, 1024, 64), 8, 16, 1, 16)]
    return [
        Load("even", llama(256, 4, 4096, 512), 64, 32, 1, 64),
        Load("long tails", llama(256, 4, 64, 512), 64, 32, 1, 256),  # 64 tokens on average, 256 the longest
        Load("8 samples", llama(256, 4, 4096, 512), 8, 128, 8, 64),
    ]


@ray.remote
class Worker(RolloutWorker):
    """A rollout worker whose engine is asked as vLLM's `LLM`."""

    def same(self, requests: list[PromptRequest], samples: int) -> int:
        """`LLM.generate` with the parameters of a rollout; returns sampled tokens."""
        from engines.vllm_engine import sampling_params

        firsts = requests[::samples]
        parameters = [sampling_params(self.config, request.seed) for request in firsts]
        for each in parameters:
            each.n = samples
        engine = cast(Any, self.engine)
        prompts = [request.prompt.ids.tolist() for request in firsts]
        return int(engine.run(bare_vllm.sample, engine.llm, prompts, parameters))

    def lengths(self, requests: list[PromptRequest]) -> list[int]:
        """Tokens of the response to each request."""
        from engines.vllm_engine import Request

        asked = [Request(r.uid, r.prompt.ids.tolist(), r.seed) for r in requests]
        found = {response.uid: len(response.tokens) for response in self.engine.generate(asked)}
        return [found[request.uid] for request in requests]


@ray.remote
class Plain:
    """Bare vLLM in an actor of its own. Calls return sampled tokens."""

    def __init__(self, model: str, rollout: Rollout, longest: int) -> None:
        import torch

        torch.set_num_threads(rollout.resources.threads)
        self.llm = bare_vllm.start(model, longest, rollout.max_num_seqs, rollout.kv_cache_mib or CPU_KV_CACHE_MIB)

    def sample(self, prompts: list[list[int]], lengths: list[list[int]]) -> int:
        """As many samples of each prompt as there are lengths."""
        return bare_vllm.sample(self.llm, prompts, [bare_vllm.plain(each) for each in lengths])


@contextmanager
def actor(kind: Any, threads: int, *args: Any) -> Iterator[Any]:
    """An actor with the environment of a rollout worker, while the body runs."""
    handle = kind.options(**actor_options(Resources(cpus=0, threads=threads), "bench", **VLLM_ENV)).remote(*args)
    try:
        yield handle
    finally:
        ray.kill(handle)


@contextmanager
def pool(model: str, rollout: Rollout) -> Iterator[RolloutPool]:
    """A rollout pool while the body runs."""
    made = RolloutPool(model, rollout)
    try:
        made.wait_ready()
        yield made
    finally:
        made.stop()


def rates(works: dict[str, Callable[[], int]], repetitions: int) -> Rates:
    """Tokens per second of works that return how many tokens they sampled, in turns."""
    tokens: dict[str, list[int]] = {name: [] for name in works}

    def counted(name: str) -> Callable[[], None]:
        return lambda: tokens[name].append(works[name]())

    times = in_turns({name: counted(name) for name in works}, repetitions)
    return {name: tuple(n / s for n, s in zip(tokens[name][1:], times[name], strict=True)) for name in works}


def measure_load(load: Load, folder: Path, repetitions: int) -> tuple[list[Ratio], dict[str, float]]:
    """Ratios and tokens per second of one load."""
    model = make_llama(load.model, folder)
    prompts, threads = random_prompts(model, load.prompts, load.prompt_tokens), cores()
    requests, whole = load.requests(prompts), load.rollout(1, threads)
    ids, longest = [prompt.ids.tolist() for prompt in prompts], load.prompt_tokens + load.max_new_tokens
    ratios, figures = list[Ratio](), dict[str, float]()

    def ask(call: Any, *args: Any) -> int:
        return int(get(call.remote(*args), TURN_S, "an engine of the bench"))

    def note(ours: str, theirs: str, found: Rates, at_least: float, bounded_by: str) -> None:
        values = paired(found[ours], found[theirs])
        ratios.append(Ratio(f"{load.name}: {ours} / {theirs}", values, at_least=at_least, bounded_by=bounded_by))
        for name in (ours, theirs):
            figures[f"{load.name}: {name}, tokens/s"] = Ratio(name, found[name]).median

    def sampled(rollouts: RolloutPool) -> int:
        return sum(chunk.info.response_tokens for chunk in rollouts.generate(requests))

    with (
        actor(Plain, threads, model, whole, longest) as bare,
        actor(Worker, threads, ModelReference.of(model), whole, threads) as worker,
    ):
        lengths = get(worker.lengths.remote(requests), START_TIMEOUT_S, "a worker of the bench")
        by_prompt = [lengths[i : i + load.samples] for i in range(0, len(lengths), load.samples)]
        bares = {
            "bare, same parameters": lambda: ask(worker.same, requests, load.samples),
            "bare, plain": lambda: ask(bare.sample, ids, by_prompt),
        }
        for count in (1, 2):
            ours = f"pool of {count}"
            with pool(model, load.rollout(count, max(threads // count, 1))) as rollouts:
                found = rates({ours: partial(sampled, rollouts), **bares}, repetitions)
            note(ours, "bare, same parameters", found, SAME, PACKS)
            note(ours, "bare, plain", found, PLAIN, SEEDS)
    return ratios, figures


def measure(smoke: bool) -> Section:
    """Ratios of tokens per second."""
    ratios, figures = list[Ratio](), dict[str, float]()
    with cluster(RayCluster()), tempfile.TemporaryDirectory() as folder:
        for load in loads(smoke):
            found, more = measure_load(load, Path(folder, load.name), 1 if smoke else 5)
            ratios += found
            figures |= more
    return Section("rollout", tuple(ratios), figures)
