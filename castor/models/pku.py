"""The published layout of PKU-Alignment's score models (`LlamaForScore` and its like), read and written.

One folder: a transformers config with the keys below and, in one checkpoint, the backbone under the architecture's own
prefix, `score_head.weight` [1, hidden], mostly `score_head.bias` [1], and the normaliser's buffers `normalizer.mean`,
`.var`, `.count` [1]. The normaliser is applied only where `do_normalize` is true, which in the released models it is
not. (safe-rlhf models/score_model, models/normalizer.py)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.model_reference import ModelLike
from castor.models.backbone import load_backbone, read_tensors
from castor.models.score import ScoreInfo, ScoreModel, ScoreType

EPSILON = 1e-8  # the reference divides by std + EPSILON
ARCHITECTURES = frozenset(
    {"bloom", "gemma", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "opt", "phi", "qwen2"}
)  # those the reference has a score model of


def is_pku(config: PreTrainedConfig) -> bool:
    """Is this the config of a model in the published layout?"""
    return any(name.endswith("ForScore") for name in config.architectures or [])


def read_pku_info(model: ModelLike, config: PreTrainedConfig) -> ScoreInfo:
    """What the score means. Raises CastorError where the config does not say, or scores are vectors."""
    settings = cast(Any, config)
    kind = getattr(settings, "score_type", None)
    if kind not in ("reward", "cost", "critic"):
        raise CastorError(
            f"{model}: its config.json has score_type {kind!r}: write 'reward' or 'cost' there, whichever it was "
            "trained as (a cost is above zero for unsafe responses)"
        )
    if getattr(settings, "score_dim", 1) != 1:
        raise CastorError(f"{model} gives {settings.score_dim} scores (score_dim): a score model here gives one")
    if not getattr(settings, "do_normalize", False) or kind == "critic":
        return ScoreInfo(cast(ScoreType, kind))
    buffers = read_tensors(model, ("normalizer.",))
    mean = buffers.get("normalizer.mean", torch.tensor(getattr(settings, "mean", None) or [0.0]))
    var = buffers.get("normalizer.var", torch.tensor(getattr(settings, "var", None) or [1.0]))
    std = float(var.double().sqrt()) + EPSILON
    return ScoreInfo(cast(ScoreType, kind), 0.0 if kind == "cost" else float(mean), std)


def load_pku(model: ModelLike, config: PreTrainedConfig, dtype: torch.dtype) -> ScoreModel:
    """A score model in the published layout, safetensors or `pytorch_model.bin`."""
    info = read_pku_info(model, config)
    head = read_tensors(model, ("score_head.",))
    if "score_head.weight" not in head:
        raise CastorError(f"{model} calls itself {config.architectures}, but its weights have no score_head")
    backbone = load_backbone(model, dtype, pickled=True)
    return ScoreModel.with_head(backbone, info, head["score_head.weight"], head.get("score_head.bias"))


def save_pku(model: ScoreModel, folder: Path, tokenizer_from: ModelLike) -> None:
    """Write a score model in the published layout; raises CastorError for an architecture that has none."""
    from huggingface_hub import save_torch_state_dict

    backbone, info = model.backbone, model.info
    if backbone.config.model_type not in ARCHITECTURES:
        raise CastorError(
            f"the published layout knows no {backbone.config.model_type} score models, only "
            f"{', '.join(sorted(ARCHITECTURES))}: use --as castor or --as sequence-classification"
        )
    head = dict(model.score_head.named_parameters())
    config = copy.deepcopy(backbone.config)
    config.architectures = [type(backbone).__name__.removesuffix("Model") + "ForScore"]
    normalized = (info.mean, info.std) != (0.0, 1.0)
    config.update(
        {
            "score_type": info.score_type,
            "score_dim": 1,
            "bias": "bias" in head,
            "score_bias": "bias" in head,  # its name in later versions of the reference
            "do_normalize": normalized,
            "normalizer_type": "ExponentialMovingAverage" if normalized else None,
            "momentum": 0.9,
            "mean": [info.mean],
            "var": [info.std**2],
        }
    )
    prefix = _prefix(model)
    tensors: dict[str, Tensor] = {f"{prefix}.{name}": tensor for name, tensor in backbone.state_dict().items()}
    tensors |= {f"score_head.{name}": parameter.detach() for name, parameter in head.items()}
    tensors |= {
        "normalizer.mean": torch.tensor([info.mean]),
        "normalizer.var": torch.tensor([info.std**2]),
        "normalizer.count": torch.zeros(1, dtype=torch.int64),
    }
    with atomic_folder(folder) as aside:
        config.save_pretrained(aside)
        save_torch_state_dict(tensors, aside)
        load_tokenizer(tokenizer_from).save_pretrained(aside)


def _prefix(model: ScoreModel) -> str:
    """The attribute the architecture's headed models keep their backbone in, e.g. model or transformer."""
    from transformers import AutoModelForCausalLM

    mapping = cast(Any, AutoModelForCausalLM)._model_mapping
    return str(mapping[type(model.backbone.config)].base_model_prefix)
