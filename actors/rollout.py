"""Rollout workers: prompts in, chunks of finished experience out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray

from actors.device import require_gpu
from actors.group import node_id
from actors.processes import Processes, processes_of_this_actor
from actors.recording import note, recorded
from actors.startup import IMPORTS, Starting, phase
from castor.config.rollout import Rollout
from castor.config.training import LoRA
from castor.data.tokens.prompt_stream import Prompt
from castor.experience import Experience
from castor.model_reference import ModelReference
from engines.weights.base import LoadedWeights, Proof, WeightUpdate

if TYPE_CHECKING:  # importing vLLM takes 20 s: only the workers do
    from engines.vllm_engine import Response


@dataclass(frozen=True)
class PromptRequest:
    """A prompt to answer once. `uid` identifies the answer within its step; `seed` makes it reproducible."""

    uid: int
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class ChunkInfo:
    """What the driver learns of a chunk: scalars only."""

    uids: tuple[int, ...]
    response_tokens: int
    oldest: int  # versions that sampled the chunk's tokens
    newest: int
    texts: tuple[str, ...] | None  # the responses decoded, where the caller asked for them
    first_token: float | None = None  # `RolloutEngine.first_token`


@recorded
class RolloutWorker(Starting):
    """One vLLM engine. As `FinishingWorker` it serves its calls one after the other: weights wait for the end of a
    generation. As `ContinuingWorker` it takes weights in between, where they are sent to the group `WEIGHTS`.
    """

    def __init__(
        self, model: ModelReference, config: Rollout, threads: int, sleeps: bool = False, lora: LoRA | None = None
    ) -> None:
        super().__init__()
        with phase(IMPORTS):
            import torch

            torch.set_num_threads(threads)  # vLLM turns later calls into no-ops
            require_gpu()  # vLLM takes it, maybe in processes of its own
            from castor.data.tokens.template import load_tokenizer
            from castor.models.lora import with_modules
            from castor.models.policy import context_length
            from engines.vllm_engine import load_vllm, make_engine

            load_vllm()

        self.config = config
        with phase("model"):
            self.tokenizer = load_tokenizer(model)
            limit = config.max_prompt_tokens + config.max_new_tokens
            longest = min(limit, context_length(model) or limit)
            folder, lora = str(model.local()), with_modules(lora, model) if lora is not None else None
        with phase("engine"):
            self.engine = make_engine(folder, config, longest, model.trust_remote_code, sleeps, lora)
        self.weights = LoadedWeights(self.engine.load_weights)
        self.has_cache = True

    def ready(self) -> int:
        """Answers once the engine is up: the version of its weights."""
        return self.weights.version

    def cache_mib(self) -> int:
        """Size of the engine's key-value cache."""
        return self.engine.cache_bytes() >> 20

    def node(self) -> str:
        """The node this worker runs on."""
        return node_id()

    def processes(self) -> Processes:
        """This worker's process and those of its engine. To be asked before it is stuck."""
        return processes_of_this_actor(self.engine.watch())

    def load_weights(self, update: WeightUpdate) -> Proof:
        """Take over new weights; returns the version and the digest of what was loaded."""
        proof = self.weights.take(update)
        if not self.has_cache:
            self._wake_cache()
        return proof

    def sleep(self, keep_weights: bool) -> None:
        """Give up the GPU's memory. Weights that are not kept come with the next update."""
        self.engine.sleep(keep_weights)
        self.has_cache = False
        if not keep_weights:
            self.weights.lose()

    def wake(self) -> None:
        """Take the GPU's memory again; where the weights are still to come, without the key-value cache."""
        self.engine.wake("weights")
        if self.weights.held:
            self._wake_cache()

    def _wake_cache(self) -> None:
        self.engine.wake("kv_cache")
        self.has_cache = True

    def generate(self, requests: Sequence[PromptRequest], decode: bool) -> Iterator[Experience | ChunkInfo]:
        """Streams pairs (Experience, ChunkInfo), each as soon as `chunk_size` responses are finished.

        A prompt longer than max_prompt_tokens has been dropped by the driver's prompt filter; here it is an error.
        """
        from castor.data.tokens.template import decode_response
        from engines.vllm_engine import Request

        encoded = [Request(r.uid, r.prompt.ids.tolist(), r.seed) for r in requests]
        prompts = {r.uid: r.prompt.text for r in requests}
        for request in encoded:
            if len(request.prompt) > self.config.max_prompt_tokens:
                raise ValueError(f"prompt {request.uid} has {len(request.prompt)} tokens: over max_prompt_tokens")
        chunk: list[Response] = []
        begin = time.time()
        for number, response in enumerate(self.engine.generate(encoded), start=1):
            chunk.append(response)
            if len(chunk) == self.config.chunk_size or number == len(encoded):
                experience = pack_experience(chunk, [prompts[r.uid] for r in chunk])
                note("chunk", begin, {})
                yield experience
                texts = tuple(decode_response(self.tokenizer, r.tokens) for r in chunk) if decode else None
                yield ChunkInfo(
                    uids=tuple(r.uid for r in chunk),
                    response_tokens=int(experience.response_lengths.sum()),
                    oldest=int(experience.versions.min()),
                    newest=int(experience.versions.max()),
                    texts=texts,
                    first_token=self.engine.first_token,
                )
                chunk, begin = [], time.time()


WEIGHTS = "weights"
FinishingWorker = ray.remote(RolloutWorker)
ContinuingWorker = cast(Any, ray.remote)(concurrency_groups={WEIGHTS: 1})(RolloutWorker)


def pack_experience(responses: Sequence[Response], prompts: Sequence[str]) -> Experience:
    """Finished responses, each with the text of its prompt, as experience."""
    lengths = np.array([len(r.tokens) for r in responses], dtype=np.int32)
    return Experience(
        uids=np.array([r.uid for r in responses], dtype=np.int64),
        prompts=tuple(prompts),
        tokens=np.concatenate([np.array([*r.prompt, *r.tokens], dtype=np.int32) for r in responses]),
        prompt_lengths=np.array([len(r.prompt) for r in responses], dtype=np.int32),
        response_lengths=lengths,
        logprobs=np.concatenate([np.array(r.logprobs, dtype=np.float32) for r in responses]),
        versions=np.concatenate([np.array(r.versions, dtype=np.int32) for r in responses]),
        truncated=np.array([r.truncated for r in responses], dtype=bool),
    )
