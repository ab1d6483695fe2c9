"""Bare vLLM, the other side of the comparisons: outside of engines/ the only file that knows it.

`python -m benchmarks.bench.bare_vllm MODEL` starts one as it comes, and samples one token.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

CONTEXT = 128  # of the engine that samples one token
CACHE_MIB = 128
WORKER_PARTS = {  # methods of its worker, and what they are for
    "init_device": "device", "load_model": "model loading", "determine_available_memory": "profiling",
    "initialize_from_config": "key-value cache", "compile_or_warm_up_model": "warm-up",
}  # fmt: skip


def start(model: str, longest: int, max_num_seqs: int, cache_mib: int) -> Any:
    """`LLM` of its own defaults, but for what decides how much work there is; eager on a CPU, as Castor's is."""
    import torch
    from vllm import LLM

    room: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": cache_mib << 20}
    if torch.cuda.is_available():
        room = {"dtype": "bfloat16", "gpu_memory_utilization": 0.4}
    return LLM(model, max_model_len=longest, max_num_seqs=max_num_seqs, **room)


def plain(lengths: Sequence[int]) -> Any:
    """Parameters of one prompt, without seed and log-probabilities: a sample for each length, as long on average."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=len(lengths), max_tokens=round(sum(lengths) / len(lengths)), ignore_eos=True, detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip


def sample(llm: Any, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> int:
    """Tokens that `LLM.generate` samples."""
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = llm.generate(inputs, list(parameters), use_tqdm=False)
    return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)


def watch_parts() -> dict[str, float]:
    """Have vLLM's workers on a CPU note the seconds of each part of their start in what is returned."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    found: dict[str, float] = {}

    def timed(method: Any, part: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                found[part] = time.perf_counter() - begin

        return run

    for method, part in WORKER_PARTS.items():
        setattr(CPUWorker, method, timed(getattr(CPUWorker, method), part))
    return found


if __name__ == "__main__":
    sample(start(sys.argv[1], CONTEXT, 16, CACHE_MIB), [[5, 6, 7]], [plain([1])])
