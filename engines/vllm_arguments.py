"""What every vLLM engine of Castor is started with: its environment and its arguments, for rollouts and for serving."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from castor.config.rollout import CPU_KV_CACHE_MIB

VLLM_ENV = {  # set before vLLM is imported
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the in-process executor needs it; AsyncLLM keeps its one engine process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process that has asked for its GPUs can use none
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
ROLLOUT_ENV = VLLM_ENV | {
    # every request has a seed and asks for log-probabilities of what is sampled from, for which FlashInfer's sampler is
    # never taken: an engine need not compile it
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
CPU_PREFILL_TOKENS = 4096  # of one step; vLLM's own default for offline inference on a CPU


class EngineOptions(Protocol):
    """What the config sections `Rollout` and `Serve` both say of an engine."""

    @property
    def dtype(self) -> Literal["auto", "float32", "bfloat16"]: ...

    @property
    def max_num_seqs(self) -> int: ...

    @property
    def kv_cache_mib(self) -> int | None: ...

    @property
    def gpu_memory_utilization(self) -> float: ...

    @property
    def tensor_parallel_size(self) -> int: ...


def engine_arguments(model: str, options: EngineOptions, max_length: int, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments of `vllm.LLM` and `AsyncEngineArgs` for the model in a folder or hub id.

    Sequences, prompt and response together, are of up to `max_length` tokens.
    """
    import torch

    from castor.models.device import resolve_dtype

    arguments: dict[str, Any] = {
        "model": model,
        "dtype": str(resolve_dtype(options.dtype)).removeprefix("torch."),
        "max_model_len": max_length,
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": options.tensor_parallel_size,
        "distributed_executor_backend": "uni" if options.tensor_parallel_size == 1 else "mp",
        "trust_remote_code": trust_remote_code,
        "disable_log_stats": True,
    }
    if torch.cuda.is_available():
        sized = {} if options.kv_cache_mib is None else {"kv_cache_memory_bytes": options.kv_cache_mib << 20}
        return arguments | {"gpu_memory_utilization": options.gpu_memory_utilization} | sized
    return arguments | {
        "enforce_eager": True,
        "kv_cache_memory_bytes": (options.kv_cache_mib or CPU_KV_CACHE_MIB) << 20,
        **_whole_prompts(options.max_num_seqs, max_length),
    }


def _whole_prompts(max_num_seqs: int, max_length: int) -> dict[str, Any]:
    """Every prompt goes through the model in one step; those that find no room in it wait for the next.

    vLLM takes back the random number that a request with a seed has drawn after a part of its prompt, which a CPU's
    generator cannot do: the engine would die. A step has room for the longest sequence beside responses under way.
    (vLLM logs that it does not officially support this; it does so itself for models with MLA on a CPU.)
    """
    room = max(CPU_PREFILL_TOKENS, max_length + max_num_seqs)
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": min(room, max_num_seqs * max_length)}
