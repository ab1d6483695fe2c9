"""What the driver spends on a prompt, with one worker and with 256 that sample nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import psutil
import ray

from actors.cluster import cluster
from actors.processes import Watched
from actors.rollout import ChunkInfo, PromptRequest
from actors.rollout_pool import RolloutPool
from actors.startup import Starting
from benchmarks.bench.measurement import Ratio, Section, paired
from castor.config.cluster import RayCluster
from castor.config.rollout import CPU_KV_CACHE_MIB, Rollout
from castor.data.tokens.prompt_stream import Prompt
from castor.experience import Experience

CHUNK, PROMPT_TOKENS, RESPONSE_TOKENS = 16, 55, 19
HOSTS = 2  # processes that the workers of a pool share: 256 of their own would need 20 GiB


@ray.remote
class Host(Watched, Starting):
    """Answers at once, in the place of many rollout workers, each of which has a thread of it."""

    def cache_mib(self) -> int:
        """Size of the key-value cache that it would have."""
        return CPU_KV_CACHE_MIB

    def ready(self) -> int:
        """The version of its weights."""
        return 0

    def generate(self, requests: Sequence[PromptRequest], decode: bool) -> Iterator[Experience | ChunkInfo]:
        """Responses of zeros, streamed as `RolloutWorker.generate` does."""
        for start in range(0, len(requests), CHUNK):
            part = requests[start : start + CHUNK]
            yield _answers(part)
            yield ChunkInfo(tuple(r.uid for r in part), RESPONSE_TOKENS * len(part), 0, 0, None)


class Share:
    """One worker of a pool: a handle of its own to a host that others have, too."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def __getattr__(self, method: str) -> Any:
        return getattr(self.host, method)


class NullPool(RolloutPool):
    """The rollout pool, whose workers are shares of hosts."""

    def __init__(self, workers: int, hosts: Sequence[Any]) -> None:
        self.hosts = hosts
        super().__init__("unused", Rollout(workers=workers, chunk_size=CHUNK))

    def _start(self, number: int) -> Any:
        worker = Share(self.hosts[number % len(self.hosts)])
        self._processes[worker] = worker.processes.remote()  # type: ignore[index]
        return worker


def measure(smoke: bool) -> Section:
    """CPU time of the driver per prompt and its memory, by the number of workers; as many prompts for all of them."""
    few, many, prompts, repetitions = (1, 8, 128, 2) if smoke else (1, 256, 4096, 5)
    requests = [
        PromptRequest(number, Prompt(f"prompt {number}", np.zeros(PROMPT_TOKENS, np.int32)), number)
        for number in range(prompts)
    ]
    spent: dict[int, list[float]] = {few: [], many: []}
    waited: dict[int, list[float]] = {few: [], many: []}
    memory: dict[int, list[float]] = {few: [], many: []}
    with cluster(RayCluster()):
        hosts: list[Any] = [cast(Any, Host).options(num_cpus=0, max_concurrency=many).remote() for _ in range(HOSTS)]
        pools = {workers: NullPool(workers, hosts) for workers in (few, many)}
        for pool in pools.values():
            pool.wait_ready()
            _round(pool, requests)  # untimed: the first calls open connections
        for _ in range(repetitions):
            for workers, pool in pools.items():
                cpu, start = time.process_time(), time.perf_counter()
                _round(pool, requests)
                spent[workers].append((time.process_time() - cpu) / prompts)
                waited[workers].append((time.perf_counter() - start) / prompts)
                memory[workers].append(psutil.Process().memory_info().rss / 2**20)
    figures = {}
    for workers in (few, many):
        figures[f"{workers} workers: driver (CPU ms a prompt)"] = 1000 * statistics.median(spent[workers])
        figures[f"{workers} workers: all processes (ms a prompt)"] = 1000 * statistics.median(waited[workers])
    figures["driver's memory at the end, less that after the first round (MiB)"] = memory[many][-1] - memory[few][0]
    return Section(
        "driver",
        (
            Ratio(
                f"driver's CPU time a prompt, {many} workers / {few}",
                paired(tuple(spent[many]), tuple(spent[few])),
                bounded_by="the call and the end of a stream: one for every worker, or one for all prompts",
            ),
        ),
        figures,
    )


def _round(pool: RolloutPool, requests: Sequence[PromptRequest]) -> None:
    """Have all requests answered. Raises RuntimeError unless each is, once."""
    answered = [uid for chunk in pool.generate(requests) for uid in chunk.info.uids]
    if sorted(answered) != [request.uid for request in requests]:
        raise RuntimeError(f"{len(answered)} answers to {len(requests)} requests")


def _answers(requests: Sequence[PromptRequest]) -> Experience:
    count = len(requests)
    return Experience(
        uids=np.array([request.uid for request in requests]),
        prompts=tuple(request.prompt.text for request in requests),
        tokens=np.zeros(count * (PROMPT_TOKENS + RESPONSE_TOKENS), np.int32),
        prompt_lengths=np.full(count, PROMPT_TOKENS, np.int32),
        response_lengths=np.full(count, RESPONSE_TOKENS, np.int32),
        logprobs=np.zeros(count * RESPONSE_TOKENS, np.float32),
        versions=np.zeros(count * RESPONSE_TOKENS, np.int32),
        truncated=np.zeros(count, bool),
    )
