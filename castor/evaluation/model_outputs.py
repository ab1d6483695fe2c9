"""Reward, cost and moderation models on texts, in this process: packed batches, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from castor.config.assess import Assess
from castor.data.rows.schemas import Exchange
from castor.data.tokens.samples import Samples
from castor.data.tokens.template import PromptTemplate, load_tokenizer
from castor.evaluation.assessment import ModelKind
from castor.io.errors import CastorError
from castor.models.backbone import load_config
from castor.models.load import load_score_model, read_score_info
from castor.models.moderation import MODERATION_FILE
from castor.models.policy import context_length
from castor.packing import micro_batches
from castor.scoring.moderator import Moderator

Progress = Callable[[int, int], None]  # texts done, texts in all
CHUNK = 512  # texts between two signs of life of a moderation model


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


@torch.inference_mode()
def _score(name: str, folder: str, texts: Sequence[Exchange], config: Assess, on: Progress) -> Outputs:
    device, dtype = _hardware(config)
    model = load_score_model(folder, dtype).eval().requires_grad_(False).to(device)
    limit = min(config.max_length, context_length(folder) or config.max_length)
    template = PromptTemplate(load_tokenizer(folder), config.template)
    samples = Samples(template, ([text] for text in texts), limit)
    found = np.zeros(len(samples))
    lengths = samples.lengths()
    (pieces,) = micro_batches(lengths, [range(len(samples))], config.batch_tokens)
    done = 0
    for piece in pieces:
        chosen = np.asarray(piece, dtype=np.int64)
        packed = samples.pack(chosen, int(lengths[chosen].max())).to(device)
        found[chosen] = model(packed.rows, packed.last_positions()).double().cpu().numpy()
        done += len(chosen)
        on(done, len(samples))
    if not np.isfinite(found).all():
        text = texts[samples.kept[int(np.flatnonzero(~np.isfinite(found))[0])]]
        raise CastorError(
            f"model {name!r} scores {int((~np.isfinite(found)).sum())} of {len(found)} texts with a number that is not "
            f"finite (first: prompt {text.prompt[:60]!r}): its weights are damaged, or {config.dtype} overflows; "
            "train it again or set dtype: float32"
        )
    scores, kept = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
    kept[samples.kept], scores[samples.kept] = True, found
    if model.info.score_type == "reward":
        return Outputs("reward", kept, scores)
    with np.errstate(over="ignore"):
        probability = 1 / (1 + np.exp(-scores * model.info.std))
    return Outputs("cost", kept, scores, probability, scores > 0)


def _moderate(folder: str, texts: Sequence[Exchange], config: Assess, on: Progress) -> Outputs:
    device, dtype = _hardware(config)
    moderator = Moderator(folder, config.template, dtype, device, config.batch_tokens)
    kept = np.array([_fits(moderator, text, config.max_length) for text in texts], dtype=bool)
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.argsort([len(texts[i].prompt) + len(texts[i].response) for i in chosen], kind="stable")]
    probability, unsafe = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool)
    labels = np.zeros((len(texts), len(moderator.info.categories)), dtype=bool)
    severity = np.zeros(len(texts), dtype=np.int64) if moderator.info.severity else None
    for start in range(0, len(chosen), CHUNK):
        piece = chosen[start : start + CHUNK]
        said = moderator.predict([(texts[i].prompt, texts[i].response) for i in piece])
        unsafe[piece], labels[piece] = said.unsafe, said.labels
        levels = said.severity_probabilities
        probability[piece] = said.probabilities.max(1) if levels is None else 1 - levels[:, 0]
        if severity is not None and said.severity is not None:
            severity[piece] = said.severity
        on(start + len(piece), len(chosen))
    return Outputs(
        "moderation", kept, None, np.clip(probability, 0, 1), unsafe, moderator.info.categories, labels, severity
    )


def _fits(moderator: Moderator, text: Exchange, max_length: int) -> bool:
    try:
        return len(moderator.encode(text.prompt, text.response)) <= max_length
    except CastorError:  # longer than the model's context, the only thing that encode refuses
        return False


def _is_hub_or_plain(folder: Path) -> bool:
    return not folder.is_dir() or (folder / "config.json").is_file()


def _has_many_labels(model: str) -> bool:
    """Is it a sequence classifier of several labels, such as beaver-dam-7b? One label makes a score model."""
    config = load_config(model)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    return classifies and (config.num_labels or 0) > 1


def _hardware(config: Assess) -> tuple[torch.device, torch.dtype]:
    gpu = torch.cuda.is_available()
    dtype = {"auto": torch.bfloat16 if gpu else torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return torch.device("cuda" if gpu else "cpu"), dtype[config.dtype]
