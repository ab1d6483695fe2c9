"""Sizes of a model, counted from its config without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from castor.config.demo_model import DemoModel
from castor.config.training import Engine, LoRA
from castor.dry_run.known_models import KNOWN_MODELS
from castor.model_reference import ModelLike, ModelReference

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `parameters` counts the language model, `backbone` the same without its vocabulary head."""

    parameters: int
    backbone: int
    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int

    @property
    def score(self) -> int:
        """Parameters of a score model: the backbone, and a linear head of hidden + 1."""
        return self.backbone + self.hidden + 1

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the vocabulary head: the largest tensors of most models."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> float:
        """About how many parameters a layer has."""
        return (self.backbone - self.embedding) / self.layers

    def trained_layers(self, engine: Engine) -> int:
        """In how many layers weights are trained."""
        return self.layers if engine.trained_layers is None else min(engine.trained_layers, self.layers)

    def trained(self, engine: Engine, *, score: bool, lora: LoRA | None) -> int:
        """How many parameters are trained, of a language model or a score model (`score`)."""
        if lora is not None:
            return self.adapters(lora)
        if engine.trained_layers is None:
            return self.score if score else self.parameters
        return round(self.trained_layers(engine) * self.layer) + (self.hidden + 1 if score else 0)

    def adapters(self, lora: LoRA) -> int:
        """About how many parameters adapters have: those of four square projections and a gated MLP in every layer."""
        widths = 4 * 2 * self.hidden + 3 * (self.hidden + self.intermediate)
        return lora.rank * widths * self.layers

    def kv_cache(self, size: int, tensor_parallel: int) -> int:
        """Bytes of a token's keys and values on one of `tensor_parallel` GPUs, `size` bytes a number.

        Heads are shared out; where there are fewer than GPUs each GPU has one.
        """
        heads = max(1, self.kv_heads // tensor_parallel)
        return 2 * self.layers * heads * self.head_size * size


def measure(model: DemoModel | ModelLike) -> Shape | None:
    """Sizes of the demo model or of a model, counted on the meta device; None for what is not known on this machine.

    The demo model counts with its full vocab_size: a corpus of fewer words makes it smaller. Raises CastorError for a
    model that ships code that is not trusted.
    """
    from castor.models.backbone import load_config
    from castor.models.tiny import llama_config

    config: PreTrainedConfig
    trusted = isinstance(model, ModelReference) and model.trust_remote_code
    if isinstance(model, DemoModel):
        config = llama_config(model, model.vocab_size)
    elif (folder := ModelReference.of(model).here()) is not None and (folder / "config.json").is_file():
        config = load_config(ModelReference(str(folder), None, trusted))
    elif ModelReference.of(model).name in KNOWN_MODELS:
        return _known(ModelReference.of(model).name)
    else:
        return None
    return shape_of(config, trusted)


@cache
def _known(name: str) -> Shape:
    from transformers import LlamaConfig

    return shape_of(LlamaConfig(**KNOWN_MODELS[name]))


def shape_of(config: PreTrainedConfig, trust_remote_code: bool = False) -> Shape:
    """Sizes of the model that a transformers config describes."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
        backbone = AutoModel.from_config(config, trust_remote_code=trust_remote_code).num_parameters()
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    return Shape(
        parameters=parameters,
        backbone=backbone,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
    )
