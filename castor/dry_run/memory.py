"""Estimates of what each actor holds: exact for weights, gradients and optimiser states, rough for the rest."""

from __future__ import annotations

from dataclasses import dataclass

from castor.config.rollout import CPU_KV_CACHE_MIB, Rollout
from castor.config.training import Engine, LoRA, Resources
from castor.dry_run.shapes import Shape
from castor.dry_run.zero import Sizes, zero

GIB = 1 << 30
# resident memory of a process that has imported the libraries and loaded nothing: estimates
TORCH_PROCESS, VLLM_PROCESS, HELPER_PROCESS = GIB // 2, 9 * GIB // 10, 3 * GIB // 10
# on a GPU, outside of torch's allocator: context and kernels of a process, and NCCL's buffers: estimates
CUDA_CONTEXT, NCCL = GIB // 2, GIB
# of what torch's allocator holds on a GPU, with blocks that are free and of the wrong size: an estimate
FRAGMENTATION = 1.05


@dataclass(frozen=True)
class Memory:
    """Bytes of one actor. On a GPU all but `process` lies there; vLLM then takes `gpu_share` of it in any case."""

    process: int
    weights: float = 0
    frozen: float = 0
    gradients: float = 0
    optimizer: float = 0
    working: float = 0
    kv_cache: float = 0  # where an engine takes the rest: of one longest response, the least it starts with
    takes_rest: bool = False  # of its share of the GPU, as measured at its start, for its key-value cache
    offloaded: float = 0  # always in the node's memory
    on_gpu: bool = False
    gpu_share: float | None = None
    runtime: float = 0  # of CUDA and NCCL, on a GPU

    @property
    def model(self) -> float:
        """Everything but the process and CUDA."""
        return self.weights + self.frozen + self.gradients + self.optimizer + self.working + self.kv_cache

    @property
    def parked(self) -> float:
        """Bytes that are in the node's memory while others have their turn on the GPU."""
        return self.weights + self.frozen + self.gradients + self.optimizer if self.on_gpu else 0.0

    @property
    def host(self) -> float:
        """Bytes of the node's memory."""
        return self.process + self.offloaded + (0 if self.on_gpu else self.model)

    @property
    def gpu(self) -> float:
        """Bytes on the GPU, as far as they do not follow from `gpu_share`."""
        return self.model * FRAGMENTATION + self.runtime if self.on_gpu and self.gpu_share is None else 0

    def on_card(self, capacity: float) -> float:
        """Bytes on a GPU of `capacity` bytes. CUDA's own are there before vLLM counts, and not in its share."""
        return self.gpu if self.gpu_share is None else self.gpu_share * capacity + self.runtime


def bytes_per_number(dtype: str, on_gpu: bool) -> int:
    """2 for bfloat16 and 4 for float32; `auto` is the former on a GPU, the latter on a CPU."""
    return 2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else 4


def trained(
    shape: Shape,
    engine: Engine,
    ranks: int,
    resources: Resources,
    *,
    score: bool,
    lora: LoRA | None = None,
    entropy: bool = False,
) -> Memory:
    """One rank that trains a language model, or a score model (`score`).

    With `lora` only the adapters have gradients and optimiser states, with `engine.trained_layers` only these layers.
    `entropy`: its bonus is in the loss.
    """
    on_gpu = resources.gpus > 0
    size = bytes_per_number(engine.dtype, on_gpu)
    sizes, kept = _sizes(shape, engine, score, lora), _gradient_bytes(engine, size)
    states = zero(sizes, engine.zero_stage, ranks, size, engine.offload, kept)
    kept_for_backward = activations(shape, engine, size, score=score, training=True, entropy=entropy)
    return Memory(
        process=TORCH_PROCESS,
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        working=max(states.backward + kept_for_backward, states.update),
        offloaded=states.host,
        on_gpu=on_gpu,
        runtime=_runtime(on_gpu, ranks),
    )


def _gradient_bytes(engine: Engine, size: int) -> int:
    """Bytes of a gradient that is added up over micro-batches, of an engine whose weights have `size` each.

    `engines.deepspeed_engine` has it in float32, where DeepSpeed can.
    """
    return 4 if engine.zero_stage else size


def _sizes(shape: Shape, engine: Engine, score: bool, lora: LoRA | None) -> Sizes:
    count, trained = shape.score if score else shape.parameters, shape.trained(engine, score=score, lora=lora)
    if lora is not None:
        frozen, largest = count, lora.rank * max(shape.hidden, shape.intermediate)
    elif engine.trained_layers is not None:
        frozen, largest = count - trained, shape.hidden * max(shape.hidden, shape.intermediate)
    else:
        frozen, largest = 0, shape.embedding
    return Sizes(trained, frozen, min(largest, trained), widest=shape.embedding)


def frozen(shape: Shape, engine: Engine, resources: Resources, *, score: bool) -> Memory:
    """An actor that only asks a language model or a score model, which it holds whole."""
    on_gpu = resources.gpus > 0
    size = bytes_per_number(engine.dtype, on_gpu)
    return Memory(
        process=TORCH_PROCESS,
        frozen=(shape.score if score else shape.parameters) * size,
        working=activations(shape, engine, size, score=score, training=False),
        on_gpu=on_gpu,
        runtime=_runtime(on_gpu, 1),
    )


def sampled(shape: Shape, rollout: Rollout) -> Memory:
    """A rollout worker, per GPU where it has some; `async` adds a second process with vLLM in it."""
    on_gpu, parallel = rollout.resources.gpus > 0, rollout.tensor_parallel_size
    size = bytes_per_number(rollout.dtype, on_gpu)
    longest = rollout.max_prompt_tokens + rollout.max_new_tokens
    sized = rollout.kv_cache_mib or (None if on_gpu else CPU_KV_CACHE_MIB)
    return Memory(
        process=VLLM_PROCESS * (2 if rollout.engine == "async" else 1),
        weights=shape.parameters * size / parallel,
        working=rollout.max_num_seqs * shape.vocabulary * 4,  # one float32 row of logits a response
        kv_cache=sized << 20 if sized else longest * shape.kv_cache(size, parallel),
        takes_rest=sized is None,
        on_gpu=on_gpu,
        gpu_share=rollout.gpu_memory_utilization if on_gpu else None,
        runtime=_runtime(on_gpu, parallel),
    )


def _runtime(on_gpu: bool, ranks: int) -> float:
    return CUDA_CONTEXT + (NCCL if ranks > 1 else 0) if on_gpu else 0.0


def activations(
    shape: Shape, engine: Engine, size: int, *, score: bool, training: bool, entropy: bool = False
) -> float:
    """Bytes of one micro-batch at most: what gated decoder layers keep for their backward pass, and the logits.

    A layer keeps 4 intermediate and 11 hidden vectors a token: inputs and outputs of its linear layers, its norms, and
    the heads before and after the rotation. In bfloat16 it is 13: norms are taken in float32.
    """
    layer = (11 if size == 4 else 13) * shape.hidden + 4 * shape.intermediate
    if not training:
        kept = layer
    elif engine.gradient_checkpointing:
        kept = layer + shape.trained_layers(engine) * shape.hidden
    else:
        kept = layer * max(shape.trained_layers(engine), 1)
    result = float(engine.micro_batch_tokens * kept * size)
    if score:
        return result
    tokens = min(engine.micro_batch_tokens, engine.chunk_tokens(shape.vocabulary))
    return result + tokens * shape.vocabulary * logit_bytes(size, entropy=entropy)


def logit_bytes(size: int, *, entropy: bool = False) -> int:
    """Bytes a token and vocabulary entry from logits to log-probabilities, at the worst moment.

    Asked: logits, tempered and after log-softmax, in float32; of a smaller type also as they were computed. The
    backward pass takes as much: log-probabilities, their gradient and that of the tempered logits, and in a smaller
    type that of the logits. An entropy bonus adds probabilities and their products.
    """
    if entropy:
        return 20
    return 12 if size == 4 else 14
