"""Score models as plain `AutoModelForSequenceClassification` checkpoints of one label, written and read.

transformers' causal sequence classifiers read the logit of the last token that is not padding, through a linear head
`score`, mostly without a bias. A score is weight·h + offset once the normaliser is folded into the head
(`folded_head`). The offset finds a place in the head's bias where the architecture has one, or where the backbone ends
in a layer norm with a bias (GPT-2, OPT, Phi, GPT-NeoX, ...): adding offset·weight / |weight|² to that bias adds exactly
the offset to every score. An RMS norm (Llama, Qwen, Mistral, Gemma) has no bias, and no constant passes through it:
there the offset stands in the block `castor` of the config, and the code of the model card adds it
(`castor.models.classifier_card`).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.model_reference import ModelLike, ModelReference
from castor.models.backbone import load_backbone, read_tensors
from castor.models.classifier_card import BLOCK, block_of, input_block, write_classifier_card
from castor.models.score import ScoreInfo, ScoreModel, ScoreType

OFFSET_TOLERANCE = 1e-7  # of a score, in its normalised unit: nothing to be represented


def is_classifier(config: PreTrainedConfig) -> bool:
    """Is this the config of a sequence classifier?"""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or [])


def read_classifier_info(model: ModelLike, config: PreTrainedConfig) -> ScoreInfo:
    """What its score means: what the export noted, else a reward, as is the custom. Raises CastorError if no score."""
    block = block_of(config) or {}
    if config.num_labels != 1 or block.get("kind") == "moderation":
        raise CastorError(
            f"{model} is a sequence classifier of {config.num_labels} labels: a score model has one, "
            "so give a reward or cost model"
        )
    means = (block.get("safe_mean"), block.get("unsafe_mean"))
    return ScoreInfo(cast(ScoreType, block.get("kind", "reward")), 0.0, float(block.get("std", 1.0)), *means)


def load_classifier(model: ModelLike, config: PreTrainedConfig, dtype: torch.dtype) -> ScoreModel:
    """A score model that is saved as a sequence classifier of one label."""
    info = read_classifier_info(model, config)
    head = read_tensors(model, ("score.",))
    if "score.weight" not in head:
        raise CastorError(f"{model} is a sequence classifier without the linear head `score`: it cannot score tokens")
    backbone = load_backbone(model, dtype, pickled=True)
    offset = float((block_of(config) or {}).get("offset", 0.0))
    bias = head.get("score.bias")
    if offset:
        bias = offset + (torch.zeros(1) if bias is None else bias)
    # the head gives scores that are normalised; a head of ours is followed by the normaliser
    return ScoreModel.with_head(
        backbone, info, head["score.weight"] * info.std, None if bias is None else bias * info.std
    )


@torch.no_grad()
def save_classifier(
    model: ScoreModel,
    folder: Path,
    tokenizer_from: ModelLike,
    *,
    template: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> float:
    """Write `folder` so that `AutoModelForSequenceClassification.from_pretrained` gives the same scores, with its card.

    Args:
        model: in float32.
        folder: written aside and renamed.
        tokenizer_from: the model whose tokenizer is copied and whose padding token the classifier skips.
        template: prompt format the model was trained with, one of `PromptTemplate`'s kinds; it is noted.
        dtype: of the weights written; another than float32 rounds the scores.

    Returns:
        what has to be added to the classifier's logits to get the scores, as the block in its config says too.

    Raises:
        CastorError: the architecture has no sequence classifier, or the tokenizer pads with its end-of-text token,
            which the classifier would skip.

    """
    tokenizer = load_tokenizer(tokenizer_from)
    require_own_pad_token(tokenizer, tokenizer_from)
    weight, offset = model.folded_head()
    backbone, reference = copy.deepcopy(model.backbone), ModelReference.of(tokenizer_from)
    classifier = classifier_around(backbone, weight, tokenizer.pad_token_id, reference.trust_remote_code)
    left = float(offset)
    head = cast(Any, classifier.score)
    if head.bias is not None:
        head.bias.copy_(offset)
        left = 0.0
    elif abs(left) <= OFFSET_TOLERANCE or _absorb(backbone, weight, offset):
        left = 0.0
    info = model.info
    block = {
        "kind": info.score_type,
        "input": input_block(tokenizer, template, "pair", backbone.config),
        "offset": left,
        "std": info.std,
        "safe_mean": info.safe_mean,
        "unsafe_mean": info.unsafe_mean,
    }
    write_classifier(classifier, folder, block, tokenizer, reference, dtype)
    return left


def write_classifier(
    classifier: PreTrainedModel,
    folder: Path,
    block: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    source: ModelReference,
    dtype: torch.dtype,
) -> None:
    """Write a classifier with its tokenizer and its card, whole or not at all.

    Args:
        classifier: as `classifier_around` makes it.
        folder: written aside and renamed.
        block: what its outputs mean, for its config (`castor.models.classifier_card`).
        tokenizer: goes along.
        source: the model that is exported; what its card tells is taken over.
        dtype: of the weights written.

    """
    classifier.config.update({BLOCK: block})
    with atomic_folder(folder) as aside:
        cast(nn.Module, classifier).to(dtype)
        classifier.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_classifier_card(aside, block, source.local(), source.trust_remote_code)


def require_own_pad_token(tokenizer: PreTrainedTokenizerBase, name: ModelLike) -> None:
    """Raise CastorError when the tokenizer pads with its EOS token: a classifier would skip the token it must read."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise CastorError(
            f"the tokenizer of {name} pads with its end-of-text token, which every response ends with: a sequence "
            "classifier would skip it and score another token; give it a pad token of its own, or write a score model "
            "--as pku"
        )


def _absorb(backbone: PreTrainedModel, weight: Tensor, offset: Tensor) -> bool:
    """Let the bias of the backbone's last layer norm add `offset` to weight·h. False where there is no such bias."""
    last: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: last.append(module) if output is not None else None)
        for module in backbone.modules()
        if isinstance(module, nn.LayerNorm) and module.bias is not None
    ]
    tokens = torch.tensor([[1, 2, 3]], device=backbone.device) % backbone.config.vocab_size
    before = backbone(input_ids=tokens, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    if not last:
        return False
    shift = (offset * weight[0] / weight.double().square().sum()).to(backbone.device)
    bias = cast(nn.LayerNorm, last[-1]).bias
    if bias.shape != shift.shape:
        return False
    kept = bias.clone()
    bias.add_(shift.to(bias.dtype))
    moved = backbone(input_ids=tokens, use_cache=False).last_hidden_state - before
    if torch.allclose(moved.double(), shift.expand_as(moved), rtol=1e-2, atol=1e-5 + 1e-2 * float(shift.abs().max())):
        return True
    bias.copy_(kept)  # it was not the last operation: something after it changes the shift
    return False


def classifier_around(
    backbone: PreTrainedModel, weight: Tensor, pad_token_id: int, trust_remote_code: bool
) -> PreTrainedModel:
    """The architecture's sequence classifier around the backbone, with a linear head of weight [labels, hidden].

    Where the architecture's head has a bias, it is zero.

    It may come from the code that a trusted model ships. Raises CastorError when there is none.
    """
    config = copy.deepcopy(backbone.config)
    config.num_labels, config.pad_token_id = len(weight), pad_token_id
    config.use_cache = False
    try:
        with torch.device("meta"):  # its own weights are never used
            classifier = AutoModelForSequenceClassification.from_config(
                config, dtype=backbone.dtype, trust_remote_code=trust_remote_code
            )
    except ValueError as error:
        raise CastorError(
            f"neither transformers nor the model has a sequence classifier for {config.model_type}: a score model can "
            "be written --as castor or --as pku"
        ) from error
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise CastorError(f"the sequence classifier of {config.model_type} is no linear head: use --as castor")
    setattr(classifier, classifier.base_model_prefix, backbone)
    biased = classifier.score.bias is not None
    classifier.score = nn.Linear(weight.shape[1], len(weight), bias=biased, dtype=backbone.dtype)
    classifier.score.weight.copy_(weight)
    if biased:
        classifier.score.bias.zero_()
    classifier.config = config
    config.architectures = [type(classifier).__name__]
    return cast(PreTrainedModel, classifier)
