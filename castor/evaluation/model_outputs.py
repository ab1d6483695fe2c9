"""Reward, cost and moderation models on texts, in this process: packed batches, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castor.config.assess import Assess
from castor.data.rows.schemas import Exchange
from castor.evaluation.assessment import ModelKind
from castor.io.errors import CastorError
from castor.models.backbone import load_config
from castor.models.device import device, resolve_dtype
from castor.models.load import read_score_info
from castor.models.moderation import MODERATION_FILE
from castor.scoring.frozen import FrozenModel, Progress
from castor.scoring.moderator import Moderator
from castor.scoring.text_model import TextModel


@dataclass(frozen=True)
class Outputs:
    """What one model says of n texts. Arrays hold zeros where a text was too long: look at `kept`."""

    kind: ModelKind
    kept: NDArray[np.bool_]  # [n]
    scores: NDArray[np.float64] | None = None  # [n] of a reward or cost model
    probability: NDArray[np.float64] | None = None  # [n] that the text is unsafe; costs and moderation
    unsafe: NDArray[np.bool_] | None = None  # [n] the verdict; costs and moderation
    categories: tuple[str, ...] = ()  # of a moderation model
    labels: NDArray[np.bool_] | None = None  # [n, categories]
    severity: NDArray[np.int64] | None = None  # [n] of a moderation model with a severity head


def model_kind(name: str, model: str) -> ModelKind:
    """What the folder or hub id `model` holds. Raises CastorError, with the name the config gives it, for another."""
    folder = Path(model)
    if folder.is_absolute() and not folder.is_dir():
        raise CastorError(f"model {name!r}: there is no folder {model}; give the folder of a trained model")
    if (folder / MODERATION_FILE).is_file() or (_is_hub_or_plain(folder) and _has_many_labels(model)):
        return "moderation"
    kind = read_score_info(model).score_type
    if kind == "critic":
        raise CastorError(f"model {name!r}: {model} is a critic, which judges no finished response; give a score model")
    return kind


def run_model(
    name: str, model: str, kind: ModelKind, texts: Sequence[Exchange], config: Assess, on: Progress
) -> Outputs:
    """The model's outputs on all texts. Raises CastorError for one that is not finite, and when every text is too long.

    The probability of a cost model is σ(cost): its sign terms are logistic in the cost before normalisation. That of a
    moderation model is P(severity > 0) where it has a severity head, else the largest of its label probabilities.
    """
    outputs = _moderate(model, texts, config, on) if kind == "moderation" else _score(name, model, texts, config, on)
    if not outputs.kept.any():
        raise CastorError(
            f"model {name!r}: all {len(texts)} texts are longer than max_length {config.max_length} tokens"
        )
    return outputs


def _score(name: str, folder: str, texts: Sequence[Exchange], config: Assess, on: Progress) -> Outputs:
    frozen = FrozenModel.load_scores(folder, config.dtype, config.batch_tokens, name=f"model {name!r}")
    model = TextModel.around(frozen, folder, config.template)
    kept, found = model.outputs_of_fitting(texts, config.max_length, on)
    info = frozen.score_info
    scores = np.zeros(len(texts))
    scores[kept] = found
    if info.score_type == "reward":
        return Outputs("reward", kept, scores)
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-scores * info.std))
    return Outputs("cost", kept, scores, probability, scores > 0)


def _moderate(folder: str, texts: Sequence[Exchange], config: Assess, on: Progress) -> Outputs:
    moderator = Moderator(folder, config.template, resolve_dtype(config.dtype), device(), config.batch_tokens)
    kept, said = moderator.predict_fitting(texts, config.max_length, on)
    levels = said.severity_probabilities
    likely = said.probabilities.max(1) if levels is None else 1 - levels[:, 0]

    def of_all(values: NDArray[Any]) -> NDArray[Any]:
        """Values [n, ...] of all texts from those of the kept ones."""
        filled = np.zeros((len(texts), *values.shape[1:]), dtype=values.dtype)
        filled[kept] = values
        return filled

    return Outputs(
        kind="moderation",
        kept=kept,
        probability=np.clip(of_all(likely), 0, 1),
        unsafe=of_all(said.unsafe),
        categories=moderator.info.categories,
        labels=of_all(said.labels),
        severity=None if said.severity is None else of_all(said.severity),
    )


def _is_hub_or_plain(folder: Path) -> bool:
    return not folder.is_dir() or (folder / "config.json").is_file()


def _has_many_labels(model: str) -> bool:
    """Is it a sequence classifier of several labels, such as beaver-dam-7b? One label makes a score model."""
    config = load_config(model)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    return classifies and (config.num_labels or 0) > 1
