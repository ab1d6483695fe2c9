"""Moderation models: harm categories, and perhaps a severity, of a question with its answer, on any backbone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import PreTrainedConfig, PreTrainedModel

from castor.algorithms.moderation import CUTS
from castor.algorithms.thresholds import Thresholds
from castor.config.moderation import InputKind, Taxonomy
from castor.data.tokens.template import load_tokenizer
from castor.io.errors import CastorError, first_line
from castor.model_reference import ModelLike, ModelReference
from castor.models.backbone import (
    find_file,
    hidden_width,
    load_backbone,
    load_config,
    model_inputs,
    packing_of,
    read_tensors,
)
from castor.models.classifier_card import block_of, input_block
from castor.models.export import classifier_around, is_classifier, require_own_pad_token, write_classifier
from castor.models.head import Float32Linear, Float32Parameters, check_head, save_with_head
from castor.models.head_kind import MODERATION_FILE as MODERATION_FILE
from castor.models.head_kind import SCORE_FILE, TAXONOMIES, taxonomy_of
from castor.models.pku import is_pku
from castor.models.read_tokens import computed_at, spares_tokens
from castor.packing import PackedRows

HEAD_FILE = "moderation_head.safetensors"
_HEADS = ("label_head.", "severity_head.")


@dataclass(frozen=True)
class ModerationInfo:
    """What a moderation model's outputs mean, and how they become decisions (see `castor.algorithms.thresholds`)."""

    taxonomy: Taxonomy
    categories: tuple[str, ...]  # of the outputs, in their order
    thresholds: Thresholds
    input: InputKind = "pair"
    severity: bool = False
    temperature: float = 1.0  # the label logits are divided by it
    severity_temperature: float = 1.0

    def __post_init__(self) -> None:
        known = TAXONOMIES.get(self.taxonomy)
        if known is None or sorted(self.categories) != sorted(known):
            raise ValueError(f"its {len(self.categories)} categories are not those of taxonomy {self.taxonomy!r}")
        if len(self.thresholds.labels) != len(self.categories):
            raise ValueError(f"{len(self.thresholds.labels)} thresholds for {len(self.categories)} categories")
        if self.severity == (None in (self.thresholds.severity, self.thresholds.expected_severity)):
            raise ValueError("a severity head and the thresholds of a severity go together")
        if not (self.temperature > 0 and self.severity_temperature > 0):
            raise ValueError("temperatures must be positive")

    @classmethod
    def fresh(cls, taxonomy: Taxonomy, input: InputKind, severity: bool) -> ModerationInfo:
        """Of an untrained model: every threshold at one half."""
        categories = TAXONOMIES[taxonomy]
        return cls(taxonomy, categories, Thresholds.unfitted(len(categories), severity), input, severity)


class SeverityHead(Float32Parameters):
    """An ordinal head: one direction of harm g, and three cut points along it (cumulative logits, as in CORAL).

    The logit of P(severity > k) is g - θ_k. The cut points are ordered by construction, θ_k+1 = θ_k + softplus(δ_k),
    so the three probabilities never contradict each other.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.direction = Float32Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.direction.weight, std=1.0 / (hidden_size + 1) ** 0.5)
        self.first_cut = nn.Parameter(torch.zeros(1, dtype=torch.float32))
        self.gaps = nn.Parameter(torch.zeros(CUTS - 1, dtype=torch.float32))

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, 3] float32 logits of P(severity > k) from hidden states [n, H]."""
        return self.direction(hidden) - self.cuts()

    def cuts(self) -> Tensor:
        """[3] float32 cut points."""
        return torch.cat([self.float32("first_cut"), softplus(self.float32("gaps"))]).cumsum(0)

    @torch.no_grad()
    def set_cuts(self, cuts: Tensor) -> None:
        """Let the cut points be these [3], in rising order."""
        gaps = cuts.diff()
        self.first_cut.copy_(cuts[:1])
        self.gaps.copy_(gaps + torch.log(-torch.expm1(-gaps)))  # the inverse of softplus


class ModerationModel(nn.Module):
    """Backbone, one linear label head without a bias (that of `AutoModelForSequenceClassification`), severity head."""

    def __init__(self, backbone: PreTrainedModel, info: ModerationInfo) -> None:
        super().__init__()
        size = hidden_width(backbone)
        self.backbone, self.info, self.packing = backbone, info, packing_of(backbone)
        self.spares = spares_tokens(backbone, self.packing)
        self.label_head = Float32Linear(size, len(info.categories), bias=False)
        nn.init.normal_(self.label_head.weight, std=1.0 / (size + 1) ** 0.5)
        self.severity_head = SeverityHead(size) if info.severity else None

    @classmethod
    def from_backbone(cls, model: ModelLike, info: ModerationInfo, dtype: torch.dtype) -> ModerationModel:
        """Fresh heads on a model's backbone (any other head is left behind)."""
        return cls(load_backbone(model, dtype), info)

    @classmethod
    def load(cls, model: ModelLike, dtype: torch.dtype) -> ModerationModel:
        """A model that `save_moderation_model` wrote, or a sequence classifier such as the published beaver-dam-7b.

        `dtype` is that of the backbone. A classifier has 14 or 19 outputs, sigmoids of a linear head at the last token.
        Raises CastorError for another model.
        """
        if not is_moderation_model(model):
            return _load_classifier(model, dtype)
        loaded = cls(load_backbone(model, dtype), read_moderation_info(model))
        _load_heads(loaded, model)
        return loaded

    def forward(self, rows: PackedRows, positions: Tensor) -> Tensor:
        """Logits at the given flat token positions [n] int64, divided by the temperatures.

        Returns [n, K] float32 label logits; with a severity head [n, K + 3], the logits of P(severity > k) behind them.
        """
        rows, inputs = model_inputs(rows, self.packing)
        read, empty = rows.flat[positions], len(positions) == 0
        with computed_at(self.backbone, read, self.spares):
            hidden = self.backbone(**inputs).last_hidden_state.flatten(0, 1)
        logits = self._heads(hidden if empty else hidden[read])
        # an empty micro-batch still has to reach every parameter in the backward pass
        return logits[:0] + 0.0 * logits.sum() if empty else logits

    def _heads(self, hidden: Tensor) -> Tensor:
        labels = self.label_head(hidden) / self.info.temperature
        if self.severity_head is None:
            return labels
        return torch.cat([labels, self.severity_head(hidden) / self.info.severity_temperature], 1)


def save_moderation_model(
    folder: Path, config: PreTrainedModel, weights: dict[str, Tensor], info: ModerationInfo, tokenizer_from: ModelLike
) -> None:
    """Write a moderation model, as `save_with_head`; `config` is its backbone."""
    heads = {name: tensor for name, tensor in weights.items() if name.startswith(_HEADS)}
    save_with_head(folder, config, weights, heads, info, (HEAD_FILE, MODERATION_FILE), tokenizer_from)


def read_moderation_info(model: ModelLike) -> ModerationInfo:
    """What the moderation model or classifier says of itself. Raises CastorError when it is neither."""
    path = find_file(model, MODERATION_FILE)
    if path is None:
        return _classifier_info(model)
    try:
        return _info_of(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise CastorError(f"{path} does not describe a moderation model: {first_line(error)}") from error


def is_moderation_model(model: ModelLike) -> bool:
    """Is it a model that `save_moderation_model` wrote?"""
    return find_file(model, MODERATION_FILE) is not None


@torch.no_grad()
def export_classifier(source: ModelLike, out: Path, dtype: torch.dtype = torch.float32, template: str = "auto") -> None:
    """Write a moderation model as a plain `AutoModelForSequenceClassification` with the same verdicts, with its card.

    The sigmoids of its first K logits are the label probabilities (the temperature is folded into the head). With a
    severity head one more logit, `severity`, is the direction of harm: P(severity > k) is the sigmoid of it less a cut
    point. Cut points, thresholds and the input format stand in the block `castor` of its config; the code in its card
    applies them.

    Args:
        source: the moderation model.
        out: the folder, written aside and renamed.
        dtype: of the weights written; another than float32 rounds the outputs.
        template: prompt format the model was trained with, one of `PromptTemplate`'s kinds.

    Raises:
        CastorError: transformers has no such class for the backbone, or it would read another token.

    """
    reference, tokenizer = ModelReference.of(source), load_tokenizer(source)
    model = ModerationModel.load(source, torch.float32)
    require_own_pad_token(tokenizer, source)
    info, severity = model.info, model.severity_head
    weight, names, cuts = model.label_head.weight / info.temperature, list(info.categories), None
    if severity is not None:
        weight = torch.cat([weight, severity.direction.weight / info.severity_temperature])
        names, cuts = [*names, "severity"], (severity.cuts().double() / info.severity_temperature).tolist()
    classifier = classifier_around(model.backbone, weight, tokenizer.pad_token_id, reference.trust_remote_code)
    classifier.config.id2label = dict(enumerate(names))
    classifier.config.label2id = {name: number for number, name in enumerate(names)}
    classifier.config.problem_type = "multi_label_classification"
    block = {
        "kind": "moderation",
        "input": input_block(tokenizer, template, info.input, model.backbone.config),
        "taxonomy": info.taxonomy,
        "categories": list(info.categories),
        "thresholds": asdict(info.thresholds),
        "temperature": info.temperature,
        "severity_cuts": cuts,
    }
    write_classifier(classifier, out, block, tokenizer, reference, dtype)


def _load_heads(moderation: ModerationModel, model: ModelLike) -> None:
    path, info = ModelReference.of(model).local() / HEAD_FILE, moderation.info
    if not path.is_file():
        raise CastorError(f"{model} has no {HEAD_FILE}: the moderation model is not whole, train it again")
    heads = load_file(path)
    own = {key: tensor for key, tensor in moderation.state_dict().items() if key.startswith(_HEADS)}
    wanted = {key: tuple(tensor.shape) for key, tensor in own.items()}
    what = f"a model with {len(info.categories)} categories and {'a' if info.severity else 'no'} severity"
    check_head(model, heads, wanted, what)
    moderation.load_state_dict(heads, strict=False)  # all of them: `check_head` has seen to it


def _load_classifier(model: ModelLike, dtype: torch.dtype) -> ModerationModel:
    info = _classifier_info(model)
    head = read_tensors(model, ("score.",))
    backbone = load_backbone(model, dtype, pickled=True)
    labels = len(info.categories)
    wanted = (labels + info.severity, hidden_width(backbone))
    found = {k: tuple(v.shape) for k, v in head.items()}
    if found != {"score.weight": wanted}:
        raise CastorError(
            f"{model} has {found or 'no head'}, and not the linear head score.weight {wanted} without a bias that a "
            "moderation model has at the last token"
        )
    moderation = ModerationModel(backbone, info)
    with torch.no_grad():
        moderation.label_head.weight.copy_(head["score.weight"][:labels])
        if moderation.severity_head is not None:
            moderation.severity_head.direction.weight.copy_(head["score.weight"][labels:])
            block = block_of(load_config(model)) or {}
            moderation.severity_head.set_cuts(torch.tensor(block["severity_cuts"], dtype=torch.float64))
    return moderation


def _classifier_info(model: ModelLike) -> ModerationInfo:
    """Of a sequence classifier, from its config: what the export noted, else by the names of its labels, if any."""
    config = load_config(model)
    block = block_of(config) or {}
    if find_file(model, SCORE_FILE) is not None or is_pku(config) or block.get("kind", "moderation") != "moderation":
        raise CastorError(f"{model} holds a score model, and a moderation model is needed here: give one, or train one")
    if not is_classifier(config):
        raise CastorError(
            f"{model} holds no moderation model ({MODERATION_FILE} is missing) and no sequence classifier: "
            "train one, or fix the path"
        )
    if config.problem_type not in (None, "multi_label_classification"):
        raise CastorError(f"{model} is a {config.problem_type} model: moderation needs independent labels")
    if block:
        try:
            fields = {"input": block["input"]["part"], "severity": block["severity_cuts"] is not None}
            return _info_of({key: block[key] for key in ("taxonomy", "categories", "thresholds")} | fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CastorError(f"{model}: `castor` in its config.json is damaged: {first_line(error)}") from error
    names = tuple(str(name) for _, name in sorted((int(number), name) for number, name in _labels(config)))
    taxonomy = taxonomy_of(names)
    if taxonomy is None:
        raise CastorError(
            f"{model} has {len(names)} labels ({', '.join(names[:3])}, ...), neither BeaverTails' 14 nor "
            "PKU-SafeRLHF's 19: give a model of one of the two taxonomies"
        )
    info = ModerationInfo.fresh(taxonomy, "pair", severity=False)
    return replace(info, categories=names) if sorted(names) == sorted(info.categories) else info


def _info_of(values: dict[str, Any]) -> ModerationInfo:
    """From JSON values. Raises KeyError, TypeError or ValueError for those of none."""
    thresholds = values["thresholds"] | {"labels": tuple(values["thresholds"]["labels"])}
    fields = {"categories": tuple(values["categories"]), "thresholds": Thresholds(**thresholds)}
    return ModerationInfo(**(values | fields))


def _labels(config: PreTrainedConfig) -> Iterable[tuple[int | str, str]]:
    return (config.id2label or {}).items()
