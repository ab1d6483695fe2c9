"""Moderation models: harm categories, and perhaps a severity, of a question with its answer, on any backbone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import PreTrainedConfig, PreTrainedModel

from castor.algorithms.moderation import CUTS
from castor.algorithms.thresholds import Thresholds
from castor.config.moderation import InputKind, Taxonomy
from castor.data.tokens.template import load_tokenizer
from castor.io.checkpoint import atomic_folder
from castor.io.errors import CastorError
from castor.io.files import write_json
from castor.models.backbone import (
    find_file,
    first_line,
    hidden_width,
    isolates_sequences,
    load_backbone,
    load_config,
    model_inputs,
    read_tensors,
)
from castor.models.export import classifier_around, is_classifier, require_own_pad_token
from castor.models.pku import is_pku
from castor.models.score import SCORE_FILE
from castor.packing import PackedRows
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES

HEAD_FILE, MODERATION_FILE = "moderation_head.safetensors", "castor_moderation.json"
TAXONOMIES: dict[Taxonomy, tuple[str, ...]] = {"beavertails": BEAVERTAILS_CATEGORIES, "pku": PKU_CATEGORIES}
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


class SeverityHead(nn.Module):
    """An ordinal head: one direction of harm g, and three cut points along it (cumulative logits, as in CORAL).

    The logit of P(severity > k) is g - θ_k. The cut points are ordered by construction, θ_k+1 = θ_k + softplus(δ_k),
    so the three probabilities never contradict each other.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.direction = nn.Linear(hidden_size, 1, bias=False, dtype=dtype)
        nn.init.normal_(self.direction.weight, std=1.0 / (hidden_size + 1) ** 0.5)
        self.first_cut = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.gaps = nn.Parameter(torch.zeros(CUTS - 1, dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, 3] float32 logits of P(severity > k) from hidden states [n, H]."""
        cuts = torch.cat([self.first_cut.float(), softplus(self.gaps.float())]).cumsum(0)
        return self.direction(hidden).float() - cuts


class ModerationModel(nn.Module):
    """Backbone, one linear label head without a bias (that of `AutoModelForSequenceClassification`), severity head."""

    def __init__(self, backbone: PreTrainedModel, info: ModerationInfo) -> None:
        super().__init__()
        size = hidden_width(backbone)
        self.backbone, self.info, self.isolated = backbone, info, isolates_sequences(backbone)
        self.label_head = nn.Linear(size, len(info.categories), bias=False, dtype=backbone.dtype)
        nn.init.normal_(self.label_head.weight, std=1.0 / (size + 1) ** 0.5)
        self.severity_head = SeverityHead(size, backbone.dtype) if info.severity else None

    @classmethod
    def from_backbone(
        cls, model: str, info: ModerationInfo, dtype: torch.dtype, trust_remote_code: bool = False
    ) -> ModerationModel:
        """Fresh heads on the backbone of a folder or hub id (any other head is left behind)."""
        return cls(load_backbone(model, dtype, trust_remote_code), info)

    @classmethod
    def load(cls, model: str | Path, dtype: torch.dtype) -> ModerationModel:
        """A model that `save_moderation_model` wrote, or a sequence classifier such as the published beaver-dam-7b.

        A classifier has 14 or 19 outputs, sigmoids of a linear head at the last token. Raises CastorError for another.
        """
        name = str(model)
        if not is_moderation_model(name):
            return _load_classifier(name, dtype)
        loaded = cls(load_backbone(name, dtype), read_moderation_info(name))
        _load_heads(loaded, name)
        return loaded

    def forward(self, rows: PackedRows, positions: Tensor) -> Tensor:
        """Logits at the given flat token positions [n] int64, divided by the temperatures.

        Returns [n, K] float32 label logits; with a severity head [n, K + 3], the logits of P(severity > k) behind them.
        """
        rows, inputs = model_inputs(rows, self.isolated)
        hidden = self.backbone(**inputs).last_hidden_state.flatten(0, 1)
        empty = len(positions) == 0
        logits = self._heads(hidden if empty else hidden[rows.flat[positions]])
        # an empty micro-batch still has to reach every parameter in the backward pass
        return logits[:0] + 0.0 * logits.sum() if empty else logits

    def _heads(self, hidden: Tensor) -> Tensor:
        labels = self.label_head(hidden).float() / self.info.temperature
        if self.severity_head is None:
            return labels
        return torch.cat([labels, self.severity_head(hidden) / self.info.severity_temperature], 1)


def save_moderation_model(
    folder: Path, config: PreTrainedModel, weights: dict[str, Tensor], info: ModerationInfo, tokenizer_from: str
) -> None:
    """Write a moderation model as a backbone folder plus a file of heads, whole or not at all.

    Args:
        folder: written aside and renamed.
        config: the backbone (only its class and config are used; under ZeRO-3 its own weights may be shards).
        weights: full weights by `ModerationModel` parameter name.
        info: what the outputs mean.
        tokenizer_from: folder or hub id whose tokenizer is copied.

    """
    prefix = "backbone."
    with atomic_folder(folder) as aside:
        backbone = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        config.save_pretrained(aside, state_dict=backbone)
        save_file({k: v.contiguous() for k, v in weights.items() if k.startswith(_HEADS)}, aside / HEAD_FILE)
        write_json(aside / MODERATION_FILE, asdict(info))
        load_tokenizer(tokenizer_from).save_pretrained(aside)


def read_moderation_info(model: str | Path) -> ModerationInfo:
    """What the moderation model or classifier says of itself. Raises CastorError when it is neither."""
    path = find_file(str(model), MODERATION_FILE)
    if path is None:
        return _classifier_info(str(model))
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        thresholds = values["thresholds"] | {"labels": tuple(values["thresholds"]["labels"])}
        fields = {"categories": tuple(values["categories"]), "thresholds": Thresholds(**thresholds)}
        return ModerationInfo(**(values | fields))
    except (KeyError, TypeError, ValueError) as error:
        raise CastorError(f"{path} does not describe a moderation model: {first_line(error)}") from error


def is_moderation_model(model: str | Path) -> bool:
    """Does the folder or hub id hold a model that `save_moderation_model` wrote?"""
    return find_file(str(model), MODERATION_FILE) is not None


@torch.no_grad()
def export_classifier(folder: str | Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a moderation model as a plain `AutoModelForSequenceClassification` with the same labels.

    Its sigmoids are the label probabilities (the temperature is folded into the head); `id2label` has the categories,
    `problem_type` is multi_label_classification. The severity head and the thresholds have no place in it. `dtype` is
    that of the weights written; another than float32 rounds the outputs. Raises CastorError when transformers has no
    such class for the backbone, or when it would read another token.
    """
    model, tokenizer = ModerationModel.load(folder, torch.float32), load_tokenizer(str(folder))
    require_own_pad_token(tokenizer, str(folder))
    classifier = classifier_around(
        model.backbone, model.label_head.weight / model.info.temperature, tokenizer.pad_token_id
    )
    classifier.config.id2label = dict(enumerate(model.info.categories))
    classifier.config.label2id = {name: number for number, name in enumerate(model.info.categories)}
    classifier.config.problem_type = "multi_label_classification"
    with atomic_folder(out) as aside:
        cast(nn.Module, classifier).to(dtype)
        classifier.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def _load_heads(model: ModerationModel, name: str) -> None:
    path = find_file(name, HEAD_FILE)
    if path is None:
        raise CastorError(f"{name} has no {HEAD_FILE}: the moderation model is not whole, train it again")
    heads = {key: tensor.to(model.backbone.dtype) for key, tensor in load_file(path).items()}
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(_HEADS)}
    shapes, wanted = ({key: tuple(tensor.shape) for key, tensor in each.items()} for each in (heads, own))
    if shapes != wanted:
        different = min(key for key in shapes | wanted if shapes.get(key) != wanted.get(key))
        raise CastorError(
            f"{path} is not the head of a model with {len(model.info.categories)} categories and "
            f"{'a' if model.info.severity else 'no'} severity: {different} is {shapes.get(different, 'missing')}, not "
            f"{wanted.get(different, 'wanted')}; train it again"
        )
    model.load_state_dict(model.state_dict() | heads)


def _load_classifier(model: str, dtype: torch.dtype) -> ModerationModel:
    info = _classifier_info(model)
    head = read_tensors(model, ("score.",))
    backbone = load_backbone(model, dtype, pickled=True)
    wanted, found = (len(info.categories), hidden_width(backbone)), {k: tuple(v.shape) for k, v in head.items()}
    if found != {"score.weight": wanted}:
        raise CastorError(
            f"{model} has {found or 'no head'}, and not the linear head score.weight {wanted} without a bias that a "
            "moderation model has at the last token"
        )
    moderation = ModerationModel(backbone, info)
    with torch.no_grad():
        moderation.label_head.weight.copy_(head["score.weight"])
    return moderation


def _classifier_info(model: str) -> ModerationInfo:
    """Of a sequence classifier, from its config: the order of its labels is that of `id2label`, if it names them."""
    config = load_config(model)
    if find_file(model, SCORE_FILE) is not None or is_pku(config):
        raise CastorError(f"{model} holds a score model, and a moderation model is needed here: give one, or train one")
    if not is_classifier(config):
        raise CastorError(
            f"{model} holds no moderation model ({MODERATION_FILE} is missing) and no sequence classifier: "
            "train one, or fix the path"
        )
    if config.problem_type not in (None, "multi_label_classification"):
        raise CastorError(f"{model} is a {config.problem_type} model: moderation needs independent labels")
    names = tuple(str(name) for _, name in sorted((int(number), name) for number, name in _labels(config)))
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    for taxonomy, categories in TAXONOMIES.items():
        if (unnamed and len(names) == len(categories)) or sorted(names) == sorted(categories):
            info = ModerationInfo.fresh(taxonomy, "pair", severity=False)
            return info if unnamed else replace(info, categories=names)
    raise CastorError(
        f"{model} has {len(names)} labels ({', '.join(names[:3])}, ...), neither BeaverTails' 14 nor PKU-SafeRLHF's "
        "19: give a model of one of the two taxonomies"
    )


def _labels(config: PreTrainedConfig) -> Iterable[tuple[int | str, str]]:
    return (config.id2label or {}).items()
