"""vLLM engines behind one interface: in this process, or AsyncLLM with an engine process of its own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol

from castor.config.rollout import Rollout
from castor.config.training import LoRA
from engines.vllm_arguments import engine_arguments
from engines.vllm_registry import import_model_class
from engines.weights.base import LOST, TransferError, WeightUpdate, receiver_of
from engines.weights.vllm_adapter import REQUEST, adapter_arguments
from engines.weights.vllm_transfer import BACKEND, WorkerExtension

STEP_TIMEOUT_S = 600.0
BUILD_TIMEOUT_S = 3600.0  # whoever starts the actor waits for less
DEATH_S = 1.0  # how often a call looks whether the engine's process is still there

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One response to sample."""

    uid: int
    prompt: list[int]
    seed: int  # of this request alone: its tokens do not depend on what else is in the batch


@dataclass(frozen=True)
class Response:
    """A finished response. `logprobs` are those of the distribution that was sampled from (tempered).

    Weights that arrive meanwhile leave the finished tokens, their log-probabilities and versions as they are.
    """

    uid: int
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    versions: list[int]  # of the weights that sampled each token
    truncated: bool


SleepingPart = Literal["weights", "kv_cache"]


class RolloutEngine(Protocol):
    """What a rollout worker needs of vLLM."""

    first_token: float | None  # of the newest `generate`, seconds since the epoch; None: not yet, or not known

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        """Sample all requests with continuous batching; yields responses as they finish."""
        ...

    def load_weights(self, update: WeightUpdate) -> str:
        """Take over the tensors of `update`, without its base; returns the digest of what was loaded.

        An update over a base is an adapter: the model keeps its weights. From another thread also during `generate`:
        the responses under way go on on the new weights. No key or value that the old weights computed survives.
        """
        ...

    def watch(self) -> list[int]:
        """From now on the processes of vLLM's workers print their stacks at SIGUSR1; returns their numbers."""
        ...

    def cache_bytes(self) -> int:
        """Size of the key-value cache, on each GPU where there are several."""
        ...

    def sleep(self, keep_weights: bool) -> None:
        """Give up the GPU's memory: that of the weights, which may be kept in the node's, and the key-value cache.

        Nothing is being sampled. On a CPU vLLM's workers ignore it: all stays where it is.
        """
        ...

    def wake(self, part: SleepingPart) -> None:
        """Take memory again for a part of what `sleep` gave up. Weights that were not kept have no values yet."""
        ...


def load_vllm() -> None:
    """Import what an engine needs: most of its start where the model is small."""
    importlib.import_module("vllm.entrypoints.llm")
    importlib.import_module("vllm.v1.engine.async_llm")


def make_engine(
    model: str,
    config: Rollout,
    max_length: int,
    trust_remote_code: bool,
    sleeps: bool = False,
    lora: LoRA | None = None,
) -> RolloutEngine:
    """The engine the config names, for sequences of up to `max_length` tokens; `sleeps`: it will be sent to sleep.

    With `lora`, whose target modules are named, it samples from the model with the adapter of the last update.
    """
    engines: dict[str, Callable[[dict[str, Any], Rollout], RolloutEngine]]
    engines = {"inproc": InprocEngine, "async": AsyncEngine}
    arguments = rollout_arguments(model, config, max_length, trust_remote_code, sleeps)
    if lora is not None:
        arguments |= adapter_arguments(lora)
    import_model_class(model)
    return engines[config.engine](arguments, config)


def rollout_arguments(
    model: str, config: Rollout, max_length: int, trust_remote_code: bool, sleeps: bool = False
) -> dict[str, Any]:
    """`engine_arguments`, and what sampling for training asks for beyond them."""
    return engine_arguments(model, config, max_length, trust_remote_code) | {
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": BACKEND},
        "worker_extension_cls": f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        "generation_config": "vllm",  # a checkpoint's own sampling defaults would change what is sampled
        "seed": 0,
        **({"hf_overrides": {"head_dtype": "float32"}} if config.head_dtype == "float32" else {}),
        **({"enable_sleep_mode": True} if sleeps and config.resources.gpus else {}),
    }


def sampling_params(config: Rollout, seed: int) -> Any:
    """vLLM's parameters of one request: exactly the sampled token's log-probability, no text."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=1,
        temperature=config.temperature,
        max_tokens=config.max_new_tokens,
        seed=seed,
        logprobs=0,
        flat_logprobs=True,  # lists of numbers; else three objects a token, which Python's garbage collector looks at
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _response(request: Request, output: Any) -> Response:
    """Raises RuntimeError when vLLM did not return a log-probability for every sampled token."""
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    if completion.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended request {request.uid} with {completion.finish_reason!r}")
    if completion.logprobs is None or completion.logprobs.token_ids != tokens or not tokens:
        raise RuntimeError(f"vLLM returned no log-probability for every token of request {request.uid}")
    logprobs = list(completion.logprobs.logprobs)
    versions = [int(span.version) for span in completion.weight_versions or () for _ in range(span.start, span.end)]
    if len(versions) != len(tokens):
        raise RuntimeError(f"vLLM does not say which weights sampled the tokens of request {request.uid}")
    return Response(request.uid, request.prompt, tokens, logprobs, versions, completion.finish_reason == "length")


class InprocEngine:
    """vLLM inside this process: one import, no serialisation.

    One thread builds the engine, steps it and loads weights into it: vLLM is not thread-safe, and on CUDA each thread
    has a stream of its own, so that what another one does is not ordered with the steps. Calls are served in the order
    in which they come: a transfer that waits goes before the next step.
    """

    def __init__(self, kwargs: dict[str, Any], config: Rollout) -> None:
        self.config = config
        self.first_token: float | None = None
        self.adapter = REQUEST if kwargs.get("enable_lora") else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self.llm: Any = self._thread.submit(self._build, kwargs).result(BUILD_TIMEOUT_S)

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Do something with `llm` on the engine's thread; returns what it returns."""
        return self._thread.submit(call, *args, **kwargs).result(STEP_TIMEOUT_S)

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        """See `RolloutEngine`."""
        engine = self.llm.llm_engine
        waiting = {str(request.uid): request for request in requests}
        self.first_token = None
        self.run(self._add, waiting)
        try:
            while waiting:
                outputs = self.run(engine.step)
                self.first_token = self.first_token or time.time()
                for output in outputs:
                    if output.finished:
                        yield _response(waiting.pop(output.request_id), output)
        finally:
            if waiting:  # an error, or a caller that stopped listening: leave nothing running behind
                self.run(engine.abort_request, list(waiting))

    def load_weights(self, update: WeightUpdate) -> str:
        """See `RolloutEngine`."""
        digest: str = self.run(self._load, update)
        return digest

    def watch(self) -> list[int]:
        """See `RolloutEngine`."""
        return list(self.run(self.llm.collective_rpc, "watch"))

    def cache_bytes(self) -> int:
        """See `RolloutEngine`."""
        return min(self.run(self.llm.collective_rpc, "cache_bytes"))

    def sleep(self, keep_weights: bool) -> None:
        """See `RolloutEngine`."""
        self.run(self.llm.sleep, level=1 if keep_weights else 2)

    def wake(self, part: SleepingPart) -> None:
        """See `RolloutEngine`."""
        self.run(self.llm.wake_up, tags=[part])

    def _build(self, kwargs: dict[str, Any]) -> Any:
        from vllm import LLM

        llm = LLM(**kwargs)
        if self.adapter:
            llm.collective_rpc("empty_adapter")
        llm.llm_engine.set_weight_version("0")
        return llm

    def _add(self, waiting: dict[str, Request]) -> None:
        for key, request in waiting.items():
            params = sampling_params(self.config, request.seed)
            prompt = {"prompt_token_ids": request.prompt}
            self.llm.llm_engine.add_request(key, prompt, params, lora_request=self.adapter)

    def _load(self, update: WeightUpdate) -> str:
        client: Any = self.llm.llm_engine.engine_core  # of this process, so it holds the core itself
        core = client.engine_core
        core.pause_scheduler(mode="keep", clear_cache=True)
        start, take, finish = _calls(update)
        self.llm.collective_rpc(start)
        for info in _pieces(update, in_process=self.config.tensor_parallel_size == 1):
            self.llm.collective_rpc(take, kwargs={"update_info": info})
        self.llm.collective_rpc(finish)
        _synchronize()  # copies that a transport put on streams of its own
        self.llm.llm_engine.set_weight_version(str(update.version))
        core.resume_scheduler()
        return _agreed(self.llm.collective_rpc("loaded_digest"))


def _synchronize() -> None:
    """Wait for everything this process has put on its GPU, if it has one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class AsyncEngine:
    """AsyncLLM: the engine lives in a process of its own, so generation goes on while this process does other work."""

    def __init__(self, kwargs: dict[str, Any], config: Rollout) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.config = config
        self.first_token: float | None = None  # all that comes out of its process is finished responses
        self.adapter = REQUEST if kwargs.get("enable_lora") else None
        self.llm: Any = None
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="vllm", daemon=True).start()

        async def start() -> AsyncLLM:
            llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**kwargs))
            if self.adapter:
                await llm.collective_rpc("empty_adapter")
            await llm.update_weight_version("0")
            return llm

        self.llm = self._run(start())

    def generate(self, requests: Sequence[Request]) -> Iterator[Response]:
        """See `RolloutEngine`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        finished: queue.Queue[Response | BaseException] = queue.Queue()

        async def one(request: Request) -> None:
            try:
                params = sampling_params(self.config, request.seed)
                prompt = {"prompt_token_ids": request.prompt}
                async for output in self.llm.generate(prompt, params, str(request.uid), lora_request=self.adapter):
                    if output.finished:
                        finished.put(_response(request, output))
            except BaseException as error:  # handed to the consumer, which raises it
                finished.put(error)

        futures = [asyncio.run_coroutine_threadsafe(one(request), self.loop) for request in requests]
        try:
            for _ in requests:
                item = finished.get(timeout=STEP_TIMEOUT_S)
                if isinstance(item, EngineDeadError):
                    _end_with_the_engine()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            for future in futures:
                future.cancel()

    def load_weights(self, update: WeightUpdate) -> str:
        """See `RolloutEngine`."""
        start, take, finish = _calls(update)
        self._run(self.llm.pause_generation(mode="keep", clear_cache=True))
        self._run(self.llm.collective_rpc(start))
        for info in _pieces(update, in_process=False):
            try:
                self._run(self.llm.collective_rpc(take, kwargs={"update_info": info}))
            except Exception as error:
                if LOST in str(error):  # from another process comes the text alone
                    raise TransferError(str(error)) from error
                raise
        self._run(self.llm.collective_rpc(finish))
        self._run(self.llm.update_weight_version(str(update.version)))
        self._run(self.llm.resume_generation())
        return _agreed(self._run(self.llm.collective_rpc("loaded_digest")))

    def watch(self) -> list[int]:
        """See `RolloutEngine`."""
        return list(self._run(self.llm.collective_rpc("watch")))

    def cache_bytes(self) -> int:
        """See `RolloutEngine`."""
        return min(self._run(self.llm.collective_rpc("cache_bytes")))

    def sleep(self, keep_weights: bool) -> None:
        """See `RolloutEngine`."""
        self._run(self.llm.sleep(level=1 if keep_weights else 2))

    def wake(self, part: SleepingPart) -> None:
        """See `RolloutEngine`."""
        self._run(self.llm.wake_up(tags=[part]))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for what the engine's process answers. vLLM does not tell a call of a death that comes after it."""
        from vllm.v1.engine.exceptions import EngineDeadError

        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not wait([future], timeout=DEATH_S).done and time.monotonic() < deadline:
            if self.llm is not None and self.llm.errored:
                _end_with_the_engine()
        try:
            return future.result(timeout=0)
        except EngineDeadError:
            _end_with_the_engine()


def _end_with_the_engine() -> NoReturn:
    """End this process, whose engine process is no more: who waits for it knows what to do about the dead."""
    log.error("vLLM's engine process has died, and this one, which is of no use without it, ends")
    os._exit(1)


def _calls(update: WeightUpdate) -> tuple[str, str, str]:
    """What vLLM's workers are asked for: to start, to take each piece, to finish."""
    if update.base is None:
        return "start_weight_update", "update_weights", "finish_weight_update"
    return "start_adapter_update", "update_adapter", "finish_adapter_update"


def _pieces(update: WeightUpdate, in_process: bool) -> Iterator[dict[str, Any]]:
    """`engines.weights.vllm_transfer.Update` of every piece."""
    for piece in receiver_of(update.transport).pieces(update, in_process):
        yield {"transport": update.transport, "piece": piece}


def _agreed(digests: list[str]) -> str:
    if len(set(digests)) != 1:
        raise RuntimeError(f"the vLLM workers of one engine loaded different weights: {sorted(set(digests))}")
    return digests[0]
