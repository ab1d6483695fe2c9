"""What the head of a model measures, as its JSON files say. Free of torch and transformers, for the dry run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from safetensors import safe_open

from castor.config.moderation import Taxonomy
from castor.io.errors import CastorError, first_line
from castor.io.files import read_json
from castor.model_reference import SAFETENSORS, ModelLike, ModelReference
from castor.taxonomy import BEAVERTAILS_CATEGORIES, PKU_CATEGORIES

SCORE_FILE, MODERATION_FILE = "castor_score.json", "castor_moderation.json"
HeadKind: TypeAlias = Literal["reward", "cost", "critic"] | Taxonomy  # a moderation head is one of its taxonomy
TAXONOMIES: dict[Taxonomy, tuple[str, ...]] = {"beavertails": BEAVERTAILS_CATEGORIES, "pku": PKU_CATEGORIES}


def continues_head(model: ModelLike, kind: HeadKind) -> bool | None:
    """Does a stage that trains a model of `kind` go on with the head of the model it starts from?

    It does where that is a model of the same kind; otherwise its head is fresh. None: the files of a hub id are not on
    this node, and nothing is fetched to find out.
    """
    found = head_kind(model)
    return None if found == "unknown" else found == kind


def head_kind(model: ModelLike) -> HeadKind | Literal["unknown"] | None:
    """What the head of a model measures; None for a language model, and for heads that are none of these.

    A sequence classifier of one label is a reward model unless it says otherwise, as is the custom. "unknown": the
    model's files are not on this node. Raises CastorError for a damaged file.
    """
    folder = ModelReference.of(model).here()
    if folder is None:
        return "unknown"
    for name, key in ((SCORE_FILE, "score_type"), (MODERATION_FILE, "taxonomy")):
        if (folder / name).is_file():
            return _known(_settings(folder / name).get(key))
    settings = _settings(folder / "config.json")
    architectures = settings.get("architectures") or []
    if any(name.endswith("ForScore") for name in architectures):
        return _known(settings.get("score_type"))
    if not any(name.endswith("ForSequenceClassification") for name in architectures) or not _is_linear(folder):
        return None
    if isinstance(block := settings.get("castor"), dict):  # a classifier that Castor exported
        return _known(block.get("taxonomy", block.get("kind")))
    named = settings.get("id2label") or dict.fromkeys(range(settings.get("num_labels", 2)))
    labels = [name or f"LABEL_{number}" for number, name in named.items()]
    if len(labels) == 1:
        return "reward"
    independent = settings.get("problem_type") in (None, "multi_label_classification")
    return taxonomy_of(labels) if independent else None


def taxonomy_of(labels: Sequence[str]) -> Taxonomy | None:
    """The taxonomy whose categories the labels of a classifier are, by name, or without names by number."""
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(labels))
    for taxonomy, categories in TAXONOMIES.items():
        if (unnamed and len(labels) == len(categories)) or sorted(labels) == sorted(categories):
            return taxonomy
    return None


def _settings(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except (TypeError, ValueError) as error:
        raise CastorError(f"{path} does not describe a model: {first_line(error)}") from error


def _is_linear(folder: Path) -> bool:
    """Is the head of a sequence classifier the linear layer `score`, or unknown, because its weights lie elsewhere?"""
    index, weights = folder / f"{SAFETENSORS}.index.json", folder / SAFETENSORS
    if index.is_file():
        return "score.weight" in _settings(index)["weight_map"]
    if not weights.is_file():
        return True
    with safe_open(weights, "np") as file:
        return "score.weight" in file.keys()  # noqa: SIM118


def _known(value: Any) -> HeadKind | None:
    return value if value in ("reward", "cost", "critic", *get_args(Taxonomy)) else None
