"""Estimates of what each actor holds in memory: exact for weights and optimiser states, rough for the rest."""

from __future__ import annotations

from dataclasses import dataclass

from castor.config.demo_model import DemoModel
from castor.config.rlhf import Rollout
from castor.config.training import REDUCE_BUCKET, Engine, LoRA, Resources
from castor.dry_run.known_models import KNOWN_MODELS
from castor.model_reference import ModelLike, ModelReference

GIB = 1 << 30
# resident memory of a process that has imported the libraries and loaded nothing: estimates
TORCH_PROCESS, VLLM_PROCESS, HELPER_PROCESS = GIB // 2, 9 * GIB // 10, 3 * GIB // 10
MOMENTS, MASTER = 8, 4  # bytes a parameter: AdamW's two float32 moments; DeepSpeed's float32 copy of the weights


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `parameters` counts the language model, `backbone` the same without its vocabulary head."""

    parameters: int
    backbone: int
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int

    @property
    def score(self) -> int:
        """Parameters of a score model: the backbone, and a linear head of hidden + 1."""
        return self.backbone + self.hidden + 1 if self.backbone else 0


NO_MODEL = Shape(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of one actor. On a GPU all but `process` lies there; vLLM then takes `gpu_share` of it in any case."""

    process: int
    weights: float = 0
    frozen: float = 0
    gradients: float = 0
    optimizer: float = 0
    working: float = 0
    kv_cache: float = 0
    offloaded: float = 0  # always in the node's memory
    on_gpu: bool = False
    gpu_share: float | None = None

    @property
    def model(self) -> float:
        """Everything but the process."""
        return self.weights + self.frozen + self.gradients + self.optimizer + self.working + self.kv_cache

    @property
    def host(self) -> float:
        """Bytes of the node's memory."""
        return self.process + self.offloaded + (0 if self.on_gpu else self.model)

    @property
    def gpu(self) -> float:
        """Bytes on the GPU, as far as they do not follow from `gpu_share`."""
        return self.model if self.on_gpu and self.gpu_share is None else 0


def measure(model: DemoModel | ModelLike) -> Shape | None:
    """Sizes of the demo model or of a model, counted on the meta device; None for what is not known on this machine.

    The demo model counts with its full vocab_size: a corpus of fewer words makes it smaller. Raises CastorError for a
    model that ships code that is not trusted.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

    from castor.models.backbone import load_config
    from castor.models.tiny import llama_config

    config: PreTrainedConfig
    trusted = isinstance(model, ModelReference) and model.trust_remote_code
    if isinstance(model, DemoModel):
        config = llama_config(model, model.vocab_size)
    elif (folder := ModelReference.of(model).here()) is not None and (folder / "config.json").is_file():
        config = load_config(ModelReference(str(folder), None, trusted))
    elif ModelReference.of(model).name in KNOWN_MODELS:
        config = LlamaConfig(**KNOWN_MODELS[ModelReference.of(model).name])
    else:
        return None
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted).num_parameters()
        backbone = AutoModel.from_config(config, trust_remote_code=trusted).num_parameters()
    text = config.get_text_config()
    intermediate = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return Shape(parameters, backbone, text.hidden_size, intermediate, text.num_hidden_layers, text.vocab_size)


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
) -> Memory:
    """One rank that trains a language model, or a score model (`score`).

    ZeRO 1 shards the optimiser's states over the ranks, 2 the gradients too, 3 the weights too. With `lora` only the
    adapters have gradients and optimiser states.
    """
    on_gpu = resources.gpus > 0
    size, stage = bytes_per_number(engine.dtype, on_gpu), engine.zero_stage
    count = shape.score if score else shape.parameters
    adapters = 0 if lora is None else _adapted(shape, lora)
    learned = adapters or count
    # in float32, stages 1 and 2 keep their partition of the weights a second time; 0 and 3 update them in place
    master = MASTER if size == 2 or stage in (1, 2) else 0
    largest = REDUCE_BUCKET if on_gpu else min(REDUCE_BUCKET, learned)  # on a CPU only touched pages are real
    bucket = largest if stage else 0
    weights = (count + adapters) * size / (ranks if stage == 3 else 1)
    optimizer = learned * (MOMENTS + master) / (ranks if stage >= 1 else 1)
    away = {"parameters": weights, "optimizer": optimizer} if on_gpu else {}  # without a GPU it all lies in one memory
    away = {what: amount for what, amount in away.items() if getattr(engine.offload, what) == "cpu"}
    return Memory(
        process=TORCH_PROCESS,
        weights=weights - away.get("parameters", 0),
        gradients=learned * size / (ranks if stage >= 2 else 1),
        optimizer=optimizer - away.get("optimizer", 0),
        working=bucket * size + _activations(shape, engine, size, score=score, training=True),
        offloaded=sum(away.values()),
        on_gpu=on_gpu,
    )


def _adapted(shape: Shape, lora: LoRA) -> int:
    """About how many parameters adapters have: those of four square projections and a gated MLP in every layer."""
    widths = 4 * 2 * shape.hidden + 3 * (shape.hidden + shape.intermediate)
    return lora.rank * widths * shape.layers


def frozen(shape: Shape, engine: Engine, resources: Resources, *, score: bool) -> Memory:
    """An actor that only asks a language model or a score model."""
    on_gpu = resources.gpus > 0
    size = bytes_per_number(engine.dtype, on_gpu)
    return Memory(
        process=TORCH_PROCESS,
        frozen=(shape.score if score else shape.parameters) * size,
        working=_activations(shape, engine, size, score=score, training=False),
        on_gpu=on_gpu,
    )


def sampled(shape: Shape, rollout: Rollout) -> Memory:
    """A rollout worker, per GPU where it has some; `async` adds a second process with vLLM in it."""
    on_gpu = rollout.resources.gpus > 0
    size = bytes_per_number(rollout.dtype, on_gpu)
    return Memory(
        process=VLLM_PROCESS * (2 if rollout.engine == "async" else 1),
        weights=shape.parameters * size / rollout.tensor_parallel_size,
        working=rollout.max_num_seqs * shape.vocabulary * 4,  # one float32 row of logits a response
        kv_cache=0 if on_gpu else rollout.kv_cache_mib << 20,
        on_gpu=on_gpu,
        gpu_share=rollout.gpu_memory_utilization if on_gpu else None,
    )


def _activations(shape: Shape, engine: Engine, size: int, *, score: bool, training: bool) -> float:
    """Rough bytes of one micro-batch: what a gated decoder layer keeps for its backward pass, and the logits.

    A layer keeps about 10 hidden and 4 intermediate vectors a token. Logits exist in the model's type (as computed,
    and as gathered), as float32 (tempered, log-softmax), and in training once more as gradients.
    """
    layer = 10 * shape.hidden + 4 * shape.intermediate
    if not training:
        kept = layer
    elif engine.gradient_checkpointing:
        kept = layer + shape.layers * shape.hidden
    else:
        kept = layer * shape.layers
    logits = 0 if score else shape.vocabulary * (2 * size + (16 if training else 8))
    return float(engine.micro_batch_tokens * (kept * size + logits))
