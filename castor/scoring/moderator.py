"""A moderation model with its tokenizer: from questions and answers to verdicts. Needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from castor.algorithms.moderation import CUTS
from castor.algorithms.thresholds import Flags, Floats, decide
from castor.config.moderation import InputKind
from castor.data.rows.fields import History
from castor.data.rows.schemas import Exchange
from castor.io.errors import CastorError
from castor.model_reference import ModelLike
from castor.models.moderation import ModerationInfo, ModerationModel
from castor.scoring.frozen import FrozenModel, Progress
from castor.scoring.text_model import TextModel


@dataclass(frozen=True)
class Verdicts:
    """What a moderation model says of n rows. K labels, in the order of `info.categories`."""

    info: ModerationInfo
    probabilities: Floats  # [n, K]
    severity_probabilities: Floats | None  # [n, 4] of the levels 0 to 3; None without a severity head
    unsafe: Flags  # [n]
    labels: Flags  # [n, K] the categories an unsafe row is in
    severity: NDArray[np.int64] | None  # [n] 0 to 3


class Moderator:
    """A loaded moderation model. It fails closed: a row it cannot judge is an error, never a verdict of safe."""

    def __init__(
        self, model: ModelLike, template: str = "auto", dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu", batch_tokens: int = 8192,
    ) -> None:  # fmt: skip
        """Load a moderation model, or a sequence classifier with 14 or 19 labels.

        Args:
            model: folder or hub id.
            template: prompt format it was trained with, one of `PromptTemplate`'s kinds.
            dtype: of the weights.
            device: where it computes.
            batch_tokens: tokens of one forward pass; a longer row has one of its own.

        """
        loaded = ModerationModel.load(model, dtype)
        self.model, self.info = loaded, loaded.info
        frozen = FrozenModel(f"the moderation model {model}", loaded, torch.device(device), batch_tokens).placed()
        self.text_model = TextModel.around(frozen, model, template)

    def encode(self, question: str, answer: str, history: History = ()) -> NDArray[np.int64]:
        """Token ids [length] of what the model reads of a row. Raises TooLongError when they exceed its context."""
        return self.text_model.encode(part_to_judge(self.info.input, Exchange(question, answer, history)))

    def predict(self, rows: Sequence[tuple[str, str] | Exchange]) -> Verdicts:
        """Verdicts on (question, answer) rows, or such with the exchanges before, in order.

        Raises CastorError for a row longer than the context and for a model whose output is not finite.
        """
        return verdicts(self.text_model.outputs(self._parts(rows)).astype(np.float64), self.info)

    def predict_fitting(
        self, rows: Sequence[tuple[str, str] | Exchange], max_length: int, on: Progress | None = None
    ) -> tuple[Flags, Verdicts]:
        """Which of n rows [n] have at most `max_length` tokens and fit the context, and verdicts on those, in order.

        Raises CastorError for a model whose output is not finite.
        """
        kept, logits = self.text_model.outputs_of_fitting(self._parts(rows), max_length, on)
        return kept, verdicts(logits.astype(np.float64), self.info)

    def _parts(self, rows: Sequence[tuple[str, str] | Exchange]) -> list[Exchange]:
        return [part_to_judge(self.info.input, Exchange(*row)) for row in rows]


def predict(model: ModelLike, rows: Sequence[tuple[str, str] | Exchange], template: str = "auto") -> Verdicts:
    """Verdicts of the moderation model in a folder on (question, answer) rows."""
    return Moderator(model, template).predict(rows)


def verdicts(logits: Floats, info: ModerationInfo) -> Verdicts:
    """Verdicts from a model's outputs [n, K] or [n, K + 3]. Raises CastorError as `split_outputs`."""
    probabilities, cumulative = split_outputs(logits, info)
    decision = decide(probabilities, cumulative, info.thresholds)
    levels = None if cumulative is None else level_probabilities(cumulative)
    return Verdicts(info, probabilities, levels, decision.unsafe, decision.labels, decision.severity)


def split_outputs(logits: Floats, info: ModerationInfo) -> tuple[Floats, Floats | None]:
    """[n, K] label probabilities and, with a severity head, [n, 3] P(severity > k), from a model's outputs.

    Raises CastorError as `check_outputs`.
    """
    check_outputs(logits, info)
    probabilities, labels = expit(logits), len(info.categories)
    return probabilities[:, :labels], probabilities[:, labels:] if info.severity else None


def check_outputs(logits: Floats, info: ModerationInfo) -> None:
    """Raise CastorError when an output is not finite, or there are more or fewer of them than `info` says."""
    labels = len(info.categories)
    if logits.ndim != 2 or logits.shape[1] != labels + (CUTS if info.severity else 0):
        raise CastorError(
            f"outputs of shape {logits.shape} are not those of a moderation model with {labels} categories and "
            f"{'a' if info.severity else 'no'} severity head"
        )
    finite = np.isfinite(logits).all(1)
    if not finite.all():
        raise CastorError(
            f"the moderation model's output for row {int(np.argmin(finite))} is not finite: its weights are damaged, "
            "or a number overflowed; no verdict is given"
        )


def level_probabilities(cumulative: Floats) -> Floats:
    """[n, 4] P(severity = k) from [n, 3] P(severity > k)."""
    edges = np.ones((len(cumulative), 1))
    return -np.diff(np.concatenate([edges, cumulative, 0 * edges], 1), axis=1)


def part_to_judge(kind: InputKind, row: Exchange) -> Exchange:
    """What a model of an input kind reads of a row; the rest is empty text. Earlier turns go with the question."""
    if kind == "answer":
        return Exchange("", row.response)
    return row._replace(response="") if kind == "question" else row
